"""The item2vec examples of the shared tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from handlers.models.item2vec import VECTORS_FILES
from tests.examples import Example
from training.tasks.next_item.world import draw_sequences, generate_sequences


def write_interactions(folder: Path) -> None:
    """Write a smaller version of the default data."""
    generate_sequences(folder, n_users=1_500)


def rows() -> list[dict[str, Any]]:
    """Return rows as callers send them, some with unusual values."""
    log, _, _ = draw_sequences(n_users=20, seed=9)
    sent: list[dict[str, Any]] = [
        {"sequence": user["item_id"].tolist()} for _, user in log.groupby("user_id")
    ]
    sent[1]["sequence"] = sent[1]["sequence"][:1]
    sent[2]["sequence"].append("an unknown item")
    sent[3]["no_such_feature"] = 1.0
    sent[4]["sequence"] = ["an unknown item"]
    return sent


def mean_vectors(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Compute the mean vectors of known items from the file that the Go services load."""
    vectors = json.loads((folder / VECTORS_FILES["item2vec"]).read_text())
    return [means(vectors, row["sequence"]) for row in rows]


def means(vectors: dict[str, list[float]], tokens: list[str]) -> list[float]:
    """Return the mean vector of the known tokens, zeros if there are none."""
    known = [vectors[token] for token in tokens if token in vectors]
    width = len(next(iter(vectors.values())))
    mean: list[float] = (np.mean(known, axis=0) if known else np.zeros(width)).tolist()
    return mean


ITEMS = Example(
    model="item2vec",
    version="v1",
    write_data=write_interactions,
    arguments=["--epochs", "5", "--dim", "32"],
    rows=rows(),
    offline=mean_vectors,
    reaches={"hr_at_10": 0.05},  # chance .01
)
EXAMPLES = [ITEMS]
