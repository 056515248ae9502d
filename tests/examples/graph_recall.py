"""The graph_recall examples of the shared tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from handlers.models.graph_recall import VECTORS_FILE
from handlers.schema import VOCABULARIES_FILE
from tests.examples import Example
from training.tasks.links.world import generate_communities


def write_graph(folder: Path) -> None:
    """Write a smaller version of the default data."""
    generate_communities(folder, n_nodes=500)


def rows() -> list[dict[str, Any]]:
    """Return rows as callers send them, some with gaps and unusual values."""
    sent: list[dict[str, Any]] = [{"user_id": f"node_{i}", "top_k": 10 + i} for i in range(20)]
    sent[1]["top_k"] = None
    sent[2]["top_k"] = 100_000
    sent[3]["no_such_feature"] = 1.0
    sent[4]["top_k"] = -1e300
    del sent[5]["top_k"]
    sent[6]["user_id"] = "nobody"
    sent[7]["user_id"] = None
    return sent


def offline(folder: Path, rows: list[Any]) -> list[Any]:
    """Compute every cosine and sort."""
    ids = json.loads((folder / VOCABULARIES_FILE).read_text())["user_id"]
    vectors = np.load(folder / VECTORS_FILE).astype(np.float64)
    predictions: list[Any] = []
    for row in rows:
        if row.get("user_id") not in ids:
            predictions.append({"item_ids": [], "scores": []})
            continue
        node = ids.index(row["user_id"])
        top_k = row.get("top_k")
        cosines = vectors @ vectors[node]
        cosines[node] = -np.inf
        best = np.argsort(-cosines)[: 20 if top_k is None else min(max(int(top_k), 1), 500)]
        best = best[best != node]
        predictions.append({"item_ids": [ids[i] for i in best], "scores": cosines[best].tolist()})
    return predictions


EXAMPLES = [
    Example(
        model="graph_recall",
        version="v1",
        write_data=write_graph,
        arguments=["--walk-length", "20", "--window", "5", "--epochs", "2"],
        rows=rows(),
        offline=offline,
        reaches={"link_auc": 0.8},  # popularity .64
        libraries=frozenset({"faiss"}),
    )
]
