"""graph_recall: edge lists, walks, the search for the nearest, and what a request gets."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pandas as pd
import pytest
from scipy.sparse import block_diag, csr_array
from scipy.sparse.csgraph import connected_components

from handlers.graph_recall_handler import GraphRecallHandler
from handlers.models import graph_recall as neighbours
from handlers.models.graph_recall import INDEX_FILE, VECTORS_FILE, Neighbours, Vectors
from tests.examples import Example, load_handler, module, predict, request, train
from training.data import files
from training.data.sources import DataError
from training.tasks.links.data import (
    EDGES_STEM,
    EDGES_SUFFIXES,
    Edges,
    hold_out,
    non_edges,
    read_edges,
    to_edges,
)
from training.tasks.links.walks import NO_NODE, Walker, alias_tables

[EXAMPLE] = module("graph_recall").EXAMPLES
KARATE = "1 32\n1 22\n# a comment\n\n1\t20\n32 22\n"


# Edge lists


def load_edges(path: Path, *, directed: bool) -> Edges:
    """The edges of a file or a folder."""
    data = files.find(str(path), stem=EDGES_STEM, suffixes=EDGES_SUFFIXES)
    return to_edges(read_edges(data), directed=directed)


def edge_set(edges: Edges) -> dict[tuple[str, str], float]:
    return {
        (edges.ids[a], edges.ids[b]): w
        for a, b, w in zip(edges.source, edges.target, edges.weight, strict=True)
    }


def test_edge_lists_of_all_formats_hold_the_same_graph(tmp_path: Path) -> None:
    table = pd.DataFrame({"weight": [1.0, 2.5, 1.0], "source": [1, 1, 7], "target": [2, 3, 2]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    text = "% weighted\n1 2\n1 3 2.5\n7.0  2 1\n"
    (tmp_path / "a.edgelist").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    paths = sorted(tmp_path.iterdir())
    graphs = [edge_set(load_edges(file, directed=True)) for file in paths]
    assert graphs == [{("1", "2"): 1.0, ("1", "3"): 2.5, ("7", "2"): 1.0}] * 5


def test_repeated_edges_add_up_and_loops_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a b\na b 2\nb a 4\nc c\nb c\n")
    assert edge_set(load_edges(path, directed=False)) == {("a", "b"): 7.0, ("b", "c"): 1.0}
    assert edge_set(load_edges(path, directed=True)) == {
        ("a", "b"): 3.0,
        ("b", "a"): 4.0,
        ("b", "c"): 1.0,
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a b\nc\n", 'line 2: expected "source target [weight]", got "c"'),
        ("a.txt", "a b {'weight': 1}\n", 'expected "source target [weight]"'),
        ("a.txt", "a b x\n", 'line 1: expected a weight above 0, got "x"'),
        ("a.txt", "a b -1\n", 'line 1: expected a weight above 0, got "-1"'),
        ("a.txt", "# nothing\n", "has no edges"),
        ("a.txt", "a a\n", "expected an edge between two nodes, got only loops"),
        ("a.json", "{}", "expected a file ending in .csv"),
        ("a.csv", "source,to\na,b\n", "missing column target"),
        ("a.csv", "source,target\na,b\n,c\n", "row 3, column source: expected a node, got an"),
        ("a.csv", "source,target,weight\na,b,0\n", "row 2, column weight: expected a number"),
        ("a.csv", "source,target,weight\na,b,\n", "column weight: expected a number above 0"),
        ("a.csv", "source,target,weight\na,b,x\n", 'column weight: expected a number, got "x"'),
    ],
)
def test_bad_edge_list_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        load_edges(tmp_path / name, directed=False)
    assert message in str(error.value)
    assert name in str(error.value)


def test_folder_stands_for_its_edges(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one of edges\.csv.*, got none"):
        load_edges(tmp_path, directed=False)
    (tmp_path / "edges.txt").write_text(KARATE)
    (tmp_path / "notes.txt").write_text("not an edge list")
    assert len(load_edges(tmp_path, directed=False)) == 4


@pytest.mark.parametrize("directed", [False, True])
def test_held_out_edges_leave_the_graph_connected(tmp_path: Path, directed: bool) -> None:
    lines = [f"{i} {(i + step) % 60}" for i in range(60) for step in (1, 2, 5)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    edges = load_edges(tmp_path / "a.txt", directed=directed)
    known, held_out = hold_out(edges, 0.5, seed=0)
    assert (len(known), len(held_out)) == (90, 90)
    assert edge_set(known) | edge_set(held_out) == edge_set(edges)
    assert connected_components(known.adjacency(), directed=False)[0] == 1
    fewest, most = hold_out(edges, 0.99, seed=0)
    assert (len(fewest), len(most)) == (59, 121)


def test_tree_has_no_edge_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\na c\nc d\n")
    with pytest.raises(DataError, match="expected some of the 3 edges to be free"):
        hold_out(load_edges(tmp_path / "a.txt", directed=False), 0.5, seed=0)


def test_pairs_without_an_edge_are_of_the_kinds_that_edges_join(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"u{u} i{i}" for u, i in rng.integers(20, size=(100, 2))]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    edges = load_edges(tmp_path / "a.txt", directed=False)
    source, target = non_edges(hold_out(edges, 0.2, 0), 500, seed=0)
    pairs = {(edges.ids[a], edges.ids[b]) for a, b in zip(source, target, strict=True)}
    assert {(a[0], b[0]) for a, b in pairs} == {("u", "i")}
    assert not pairs & edge_set(edges).keys()


# Walks


def random_graph(rng: np.random.Generator, n: int, weights: Any) -> csr_array:
    dense = (rng.random((n, n)) < 0.6) * rng.choice(weights, (n, n))
    np.fill_diagonal(dense, 0)
    dense[n - 1] = 0  # a node without a way on
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
    wanted = graph.data / np.bincount(row, graph.data)[row]
    assert (row[alias] == row).all()
    np.testing.assert_allclose(drawn, wanted, rtol=0, atol=1e-9)


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


def test_walks_start_everywhere_follow_arcs_and_end_where_none_leads_on() -> None:
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


# The nearest


def unit_vectors(n: int, dim: int = 16, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def by_sorting(vectors: Vectors, node: Any, k: int) -> npt.NDArray[np.int64]:
    cosines = vectors.astype(np.float64) @ vectors[node].astype(np.float64)
    order = np.argsort(-cosines, kind="stable")
    nearest: npt.NDArray[np.int64] = order[order != node][:k]
    return nearest


def test_equal_scores_come_in_the_order_of_the_nodes() -> None:
    vectors = np.tile(unit_vectors(5), (40, 1))
    search = Neighbours(vectors)
    for nodes in (np.array([7]), np.arange(200)):
        nearest, scores = search.nearest(nodes, [39] * len(nodes))[-1 if len(nodes) == 1 else 7]
        assert nearest.tolist() == [i for i in range(2, 200, 5) if i != 7]
        assert scores.tolist() == pytest.approx([1.0] * 39)


def test_more_than_there_are_gets_all_others() -> None:
    search = Neighbours(unit_vectors(4))
    [(nearest, scores)] = search.nearest(np.array([2]), [500])
    assert sorted(nearest.tolist()) == [0, 1, 3]
    assert (np.diff(scores) <= 0).all()


def test_index_is_carried_found_and_nearly_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "MAX_EXACT", 1_000)
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


def test_a_graph_below_the_limit_needs_no_index(tmp_path: Path) -> None:
    Neighbours.build(unit_vectors(50)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [VECTORS_FILE]


# Training and requests


@pytest.fixture
def handler(artifact_folder: Callable[[Example], Path]) -> GraphRecallHandler:
    loaded = load_handler("graph_recall", artifact_folder(EXAMPLE))
    assert isinstance(loaded, GraphRecallHandler)
    return loaded


def test_nearest_come_first_without_the_node_itself(handler: GraphRecallHandler) -> None:
    [answer] = predict(handler, {"user_id": "node_3", "top_k": 30})
    assert len(set(answer["item_ids"])) == 30
    assert "node_3" not in answer["item_ids"]
    assert answer["scores"] == sorted(answer["scores"], reverse=True)


def test_top_k_defaults_to_20_and_is_clamped(handler: GraphRecallHandler) -> None:
    sent: list[dict[str, Any]]
    sent = [{}, {"top_k": None}, {"top_k": 0}, {"top_k": -7}, {"top_k": 1e300}, {"top_k": 2.9}]
    answers = predict(handler, [{"user_id": "node_3", **row} for row in sent])
    n_others = len(handler.node_ids) - 1
    assert [len(a["item_ids"]) for a in answers] == [20, 20, 1, 1, min(500, n_others), 2]
    assert handler.counts.missing.tolist() == [0, 2]
    assert handler.counts.out_of_range.tolist() == [0, 3]


def test_unknown_and_missing_users_get_empty_lists_and_are_counted(
    handler: GraphRecallHandler,
) -> None:
    rows = [{"user_id": "nobody"}, {"user_id": 7}, {}, {"user_id": "node_3", "top_k": 1}]
    *empty, known = predict(handler, rows)
    assert empty == [{"item_ids": [], "scores": []}] * 3
    assert len(known["item_ids"]) == 1
    assert handler.counts.out_of_vocabulary.tolist() == [2, 0]
    assert handler.counts.missing.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_id": "a", "top_k": "5"}, 'data[0].top_k: expected a number, got "5"'),
        ({"user_id": "a", "top_k": True}, "data[0].top_k: expected a number, got true"),
        ({"user_id": ["a"]}, 'data[0].user_id: expected a string or a number, got ["a"]'),
    ],
)
def test_bad_row_is_told_what_was_expected(
    handler: GraphRecallHandler, row: dict[str, Any], message: str
) -> None:
    [(status, body)], _ = handler.answer([request([row])])
    assert (status, orjson.loads(body)["message"]) == (400, message)


def run(tmp_path: Path, version: str, *flags: str) -> Path:
    quick = ["--epochs", "1", "--num-walks", "5", "--dim", "8", "--test-share", "0.2"]
    places = ["--artifacts-dir", str(tmp_path / "artifacts"), "--version", version]
    assert train("graph_recall", *quick, *places, *flags) == 0
    return tmp_path / "artifacts" / "graph_recall" / version


def test_weighted_user_item_graph_recalls_by_number_or_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(60, size=800)
    item = rng.integers(10, size=800) * 3 + user % 3
    heavy = {"source": user, "target": 1000 + item, "weight": rng.uniform(0.5, 2, 800)}
    pd.DataFrame(heavy).to_parquet(tmp_path / "log.parquet")
    folder = run(tmp_path, "v1", "--edges", str(tmp_path / "log.parquet"), "--p", ".5", "--q", "2")
    answers = predict(
        load_handler("graph_recall", folder),
        [{"user_id": user_id, "top_k": 5} for user_id in (7, 7.0, "7")],
    )
    assert len(answers[0]["item_ids"]) == 5
    assert answers == [answers[0]] * 3
    reports = json.loads((folder / "metrics.json").read_text())["test"]
    assert reports["graph_recall"]["link_auc"] > 0.6


def test_same_edges_and_seed_give_the_same_vectors(
    tmp_path: Path, data_folder: Callable[[Example], Path]
) -> None:
    edges = ["--edges", str(data_folder(EXAMPLE))]
    first, again, other, directed = (
        (run(tmp_path, version, *edges, *flags) / VECTORS_FILE).read_bytes()
        for version, flags in (
            ("v1", []),
            ("v2", []),
            ("v3", ["--seed", "1"]),
            ("v4", ["--directed"]),
        )
    )
    assert first == again
    assert len({first, other, directed}) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--walk-length", "1"], "error: --walk-length 1: expected 2 or more"),
        (["--test-share", "1"], "error: --test-share 1.0: expected 0.001 to 0.999"),
        (["--edges", "nowhere.csv"], "error: nowhere.csv: no such file"),
    ],
)
def test_flag_that_cannot_work_is_told(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("graph_recall", *flags) == 1
    assert message in capsys.readouterr().err
