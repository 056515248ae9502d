"""word2vec for the shared tests."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from handlers.models.item2vec import VECTORS_FILES
from tests.examples.item2vec import ITEMS, means
from training.tasks.next_item.world import corpus, generate_corpus


def write_texts(folder: Path) -> None:
    """The default world, smaller."""
    generate_corpus(folder, n_texts=800)


def rows() -> list[dict[str, Any]]:
    """Texts as callers send them, some with gaps and oddities."""
    texts, _ = corpus(n_texts=20, seed=9)
    sent: list[dict[str, Any]] = [{"text": text} for text in texts["text"]]
    sent[1]["text"] += " a word that nobody wrote"
    sent[2]["no_such_feature"] = 1.0
    sent[3]["text"] = ""
    return sent


def mean_vectors(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Means of the known words' vectors, straight from the map that Go loads."""
    vectors = json.loads((folder / VECTORS_FILES["word2vec"]).read_text())
    return [means(vectors, row["text"].split()) for row in rows]


EXAMPLES = [
    replace(
        ITEMS,
        model="word2vec",
        write_data=write_texts,
        rows=rows(),
        offline=mean_vectors,
        reaches={"hr_at_10": 0.02},  # chance .009
    )
]
