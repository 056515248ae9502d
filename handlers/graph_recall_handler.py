"""Serves the nearest nodes of a node2vec embedding."""

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from handlers.base import RecHandler, Vectors
from handlers.models.graph_recall import (
    ARCH_VERSION,
    META_FILE,
    VECTORS_FILE,
    Neighbours,
)
from handlers.request_rows import DEFAULT_TOP_K, MAX_TOP_K
from handlers.schema import read_vocabularies
from handlers.values import Id, row_token, to_token


class GraphRecallHandler(RecHandler):
    """Finds the nearest nodes of a node."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION

    def load_model(self, model_dir: Path) -> None:
        """Load the ids and the vectors of the nodes."""
        self.feature_names = ("user_id", "top_k")
        self.node_ids = read_vocabularies(model_dir)["user_id"]
        self.nodes = {node_id: node for node, node_id in enumerate(self.node_ids)}
        self.neighbours = Neighbours.load(model_dir, int(self.config.get("threads", 1)))

    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the type of a row: an object with ``user_id`` and ``top_k``."""
        return msgspec.defstruct(
            "Row",
            [("user_id", Id | None, None), ("top_k", float | None, None)],
            forbid_unknown_fields=forbid_unknown,
        )

    def describe_features(self) -> list[dict[str, Any]]:
        """Describe the number of nodes, and the default and range of ``top_k``."""
        features: list[dict[str, Any]] = self.meta["features"]
        return features

    def predict(self, rows: list[Any]) -> list[Any]:
        """Find the nearest nodes of each row's node.

        Returns:
            ``{"item_ids": [K], "scores": [K]}`` for each row, best first; empty lists if unknown.
        """
        predictions: list[Any] = [{"item_ids": [], "scores": []} for _ in rows]
        nodes = [self._node(row_token(row.user_id, i, "user_id")) for i, row in enumerate(rows)]
        top_k = [self._top_k(row.top_k) for row in rows]
        known = [i for i, node in enumerate(nodes) if node is not None]
        found = self.neighbours.nearest(
            np.array([nodes[i] for i in known], dtype=np.int64), [top_k[i] for i in known]
        )
        for i, (nearest, scores) in zip(known, found, strict=True):
            item_ids = [self.node_ids[node] for node in nearest]
            predictions[i] = {"item_ids": item_ids, "scores": scores}
        return predictions

    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Return the vectors of nodes."""
        table = np.load(model_dir / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        nodes = np.array([self.nodes.get(to_token(item) or "", -1) for item in items])
        vectors = np.full((len(items), table.shape[1]), np.nan, dtype=np.float32)
        vectors[nodes >= 0] = table[nodes[nodes >= 0]]
        return vectors

    def _node(self, user_id: str | None) -> int | None:
        if user_id is None:
            self.counts.missing[0] += 1
            return None
        node = self.nodes.get(user_id)
        if node is None:
            self.counts.out_of_vocabulary[0] += 1
        return node

    def _top_k(self, top_k: float | None) -> int:
        if top_k is None:
            self.counts.missing[1] += 1
            return DEFAULT_TOP_K
        clamped = min(max(top_k, 1), MAX_TOP_K)
        if clamped != top_k:
            self.counts.out_of_range[1] += 1
        return int(clamped)
