"""Request rows that ask for the nearest nodes of a node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from handlers.feature import Feature
from handlers.models.graph_recall import Neighbours
from handlers.request_rows import DEFAULT_TOP_K, MAX_TOP_K
from handlers.schema import FeatureSchema
from training.golden import GOLDEN_ROWS, Golden

UNKNOWN_ID = "a node that no edge has"
# Values of top_k as sent, and as they are served.
_TOP_KS = ((1, 1), (1000, MAX_TOP_K), (-3, 1), (None, DEFAULT_TOP_K))


def node_schema(ids: Sequence[str]) -> FeatureSchema:
    """Describe a row: a node and the number of nodes to return."""
    return FeatureSchema(
        [
            Feature("user_id", kind="category", vocabulary=tuple(ids)),
            Feature("top_k", default=DEFAULT_TOP_K, train_range=(1, MAX_TOP_K)),
        ]
    )


def golden(ids: Sequence[str], neighbours: Neighbours) -> Golden:
    """Return golden rows with their predictions, the nearest nodes.

    Some rows have a ``top_k`` out of range or none, one has an unknown node, one has no node.
    """
    nodes = np.linspace(0, len(ids) - 1, GOLDEN_ROWS - 2).astype(np.int64)
    served = [DEFAULT_TOP_K] * len(nodes)
    rows: list[dict[str, Any]] = [{"user_id": ids[node], "top_k": DEFAULT_TOP_K} for node in nodes]
    for i, (sent, top_k) in enumerate(_TOP_KS, start=2):
        rows[i]["top_k"], served[i] = sent, top_k
    del rows[6]["top_k"]
    predictions: list[Any] = [
        {"item_ids": [ids[i] for i in nearest], "scores": scores.tolist()}
        for nearest, scores in neighbours.nearest(nodes, served)
    ]
    rows += [{"user_id": UNKNOWN_ID, "top_k": 5}, {}]
    predictions += [{"item_ids": [], "scores": []}] * 2
    return Golden(rows, predictions)
