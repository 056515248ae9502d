"""Walks follow edge weights and the biases of p and q."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.sparse import block_diag, csr_array

from training.tasks.links.walks import NO_NODE, Walker, WalkSentences, alias_tables


def random_graph(rng: np.random.Generator, n: int, weights: Any) -> csr_array:
    dense = (rng.random((n, n)) < 0.6) * rng.choice(weights, (n, n))
    np.fill_diagonal(dense, 0)
    dense[n - 1] = 0  # a node without outgoing arcs
    graph = csr_array(dense.astype(np.float64))
    graph.sort_indices()
    return graph


@pytest.mark.parametrize("seed", range(20))
def test_alias_tables_draw_arcs_by_their_weights(seed: int) -> None:
    graph = random_graph(np.random.default_rng(seed), 9, [1, 1, 2, 1 / 3, 1e-6, 1e6])
    threshold, alias = alias_tables(graph.indptr, graph.data)
    degree = np.diff(graph.indptr)
    row = np.repeat(np.arange(9), degree)
    drawn = (threshold + np.bincount(alias, 1 - threshold, len(alias))) / degree[row]
    expected = graph.data / np.bincount(row, graph.data)[row]
    assert (row[alias] == row).all()
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("weights", [[1], [1, 2, 5]], ids=["even", "weighted"])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 0.5), (0.25, 4), (4, 0.25), (0.2, 0.5), (2, 3)])
def test_walks_follow_weights_and_biases(weights: list[int], p: float, q: float) -> None:
    graph = random_graph(np.random.default_rng(4), 6, weights)
    copies = csr_array(block_diag([graph] * 2_000))
    counts = np.zeros((6, 6, 6))
    for walks in Walker(copies, 3, p, q).walks(10, seed=0):
        whole = walks[walks[:, 2] != NO_NODE] % 6
        np.add.at(counts, tuple(whole.T), 1)
    dense = graph.toarray()
    for before, here in zip(*np.nonzero(counts.sum(axis=2) > 500), strict=True):
        bias = np.where(dense[before] > 0, 1, 1 / q)
        bias[before] = 1 / p
        expected = dense[here] * bias / (dense[here] * bias).sum()
        n = counts[before, here].sum()
        error = np.abs(counts[before, here] / n - expected)
        assert (error <= 4.5 * np.sqrt(expected * (1 - expected) / n) + 1e-12).all()


def test_walks_start_at_every_node_follow_arcs_and_end_only_without_one() -> None:
    graph = random_graph(np.random.default_rng(1), 8, [1])
    for walker in (Walker(graph, 12, 1, 1), Walker(graph, 12, 0.5, 2)):
        blocks = list(walker.walks(3, seed=0))
        assert Counter(np.concatenate(blocks)[:, 0].tolist()) == dict.fromkeys(range(8), 3)
        for walk in np.concatenate(blocks):
            steps = walk[walk != NO_NODE]
            assert (walk[: len(steps)] == steps).all()
            assert (graph.toarray()[steps[:-1], steps[1:]] > 0).all()
            assert len(steps) == 12 or steps[-1] == 7
        assert all(map(np.array_equal, blocks, walker.walks(3, seed=0)))


def test_sentences_are_new_walks_without_padding_on_each_pass() -> None:
    graph = random_graph(np.random.default_rng(1), 8, [1])
    sentences = WalkSentences(Walker(graph, 12, 1, 1), num_walks=3, seed=0)
    passes = [list(sentences), list(sentences)]
    again = WalkSentences(Walker(graph, 12, 1, 1), num_walks=3, seed=0)
    assert passes == [list(again), list(again)]
    assert passes[0] != passes[1]
    assert [len(walks) for walks in passes] == [len(sentences)] * 2
    assert {node for walks in passes for walk in walks for node in walk} == set(range(8))
    assert sum(sentences.visits().values()) >= len(sentences)
