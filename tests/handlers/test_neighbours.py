"""The search for the nearest nodes agrees with sorting every cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from handlers.models import graph_recall
from handlers.models.graph_recall import INDEX_FILE, VECTORS_FILE, Neighbours, Vectors


def unit_vectors(n: int, dim: int = 16, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def by_sorting(vectors: Vectors, node: Any, k: int) -> npt.NDArray[np.int64]:
    cosines = vectors.astype(np.float64) @ vectors[node].astype(np.float64)
    order = np.argsort(-cosines, kind="stable")
    nearest: npt.NDArray[np.int64] = order[order != node][:k]
    return nearest


def test_nodes_with_equal_scores_keep_their_order() -> None:
    vectors = np.tile(unit_vectors(5), (40, 1))
    search = Neighbours(vectors)
    for nodes in (np.array([7]), np.arange(200)):
        nearest, scores = search.nearest(nodes, [39] * len(nodes))[-1 if len(nodes) == 1 else 7]
        assert nearest.tolist() == [i for i in range(2, 200, 5) if i != 7]
        assert scores.tolist() == pytest.approx([1.0] * 39)


def test_top_k_above_the_number_of_nodes_returns_all_others() -> None:
    search = Neighbours(unit_vectors(4))
    [(nearest, scores)] = search.nearest(np.array([2]), [500])
    assert sorted(nearest.tolist()) == [0, 1, 3]
    assert (np.diff(scores) <= 0).all()


def test_index_is_saved_loaded_and_nearly_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_recall, "MAX_EXACT", 1_000)
    vectors = unit_vectors(20_000, dim=32)
    Neighbours.build(vectors).save(tmp_path)
    first = (tmp_path / INDEX_FILE).read_bytes()
    Neighbours.build(vectors).save(tmp_path)
    assert (tmp_path / INDEX_FILE).read_bytes() == first
    assert len(first) < vectors.nbytes / 4

    search = Neighbours.load(tmp_path)
    nodes = np.arange(0, 20_000, 200)
    together = search.nearest(nodes, [20] * 100)
    hits = [
        np.isin(by_sorting(vectors, node, 20), nearest).mean()
        for node, (nearest, _) in zip(nodes, together, strict=True)
    ]
    assert np.mean(hits) > 0.99
    for node, (nearest, scores) in zip(nodes[:10], together[:10], strict=True):
        [(alone, scores_alone)] = search.nearest(np.array([node]), [20])
        assert alone.tolist() == nearest.tolist()
        assert scores_alone.tolist() == scores.tolist()
        np.testing.assert_allclose(scores, vectors[nearest] @ vectors[node], rtol=1e-5)


def test_small_graph_has_no_index(tmp_path: Path) -> None:
    Neighbours.build(unit_vectors(50)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [VECTORS_FILE]
