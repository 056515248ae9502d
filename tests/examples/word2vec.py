"""The word2vec examples of the shared tests."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from handlers.models.item2vec import VECTORS_FILES
from tests.examples.item2vec import ITEMS, means
from training.tasks.next_item.world import draw_corpus, generate_corpus


def write_texts(folder: Path) -> None:
    """Write a smaller version of the default data."""
    generate_corpus(folder, n_texts=800)


def rows() -> list[dict[str, Any]]:
    """Return rows as callers send them, some with unusual values."""
    texts, _ = draw_corpus(n_texts=20, seed=9)
    sent: list[dict[str, Any]] = [{"text": text} for text in texts["text"]]
    sent[1]["text"] += " some unknownword"
    sent[2]["no_such_feature"] = 1.0
    sent[3]["text"] = ""
    return sent


def mean_vectors(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Compute the mean vectors of known words from the file that the Go services load."""
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
