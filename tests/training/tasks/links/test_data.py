"""Edge lists of every format become the same graph, and held-out edges leave it connected."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse.csgraph import connected_components

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

KARATE = "1 32\n1 22\n# a comment\n\n1\t20\n32 22\n"


def load_edges(path: Path, *, directed: bool) -> Edges:
    """Read the edges of a file or a folder."""
    data = files.find(str(path), stem=EDGES_STEM, suffixes=EDGES_SUFFIXES)
    return to_edges(read_edges(data), directed=directed)


def edge_set(edges: Edges) -> dict[tuple[str, str], float]:
    return {
        (edges.ids[a], edges.ids[b]): w
        for a, b, w in zip(edges.source, edges.target, edges.weight, strict=True)
    }


def test_edge_lists_of_all_formats_give_the_same_graph(tmp_path: Path) -> None:
    table = pd.DataFrame({"weight": [1.0, 2.5, 1.0], "source": [1, 1, 7], "target": [2, 3, 2]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.csv.gz", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    text = "% weighted\n1 2\n1 3 2.5\n7.0  2 1\n"
    (tmp_path / "a.edgelist").write_text(text)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    paths = sorted(tmp_path.iterdir())
    graphs = [edge_set(load_edges(file, directed=True)) for file in paths]
    assert graphs == [{("1", "2"): 1.0, ("1", "3"): 2.5, ("7", "2"): 1.0}] * 5


def test_weights_of_repeated_edges_add_up_and_loops_are_dropped(tmp_path: Path) -> None:
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
        ("a.txt", "a b\ncaf\udce9 b\n", "expected text in UTF-8, got byte 0xe9"),
        ("a.json", "{}", "expected a file ending in .csv"),
        ("a.csv", "source,to\na,b\n", "missing column target"),
        ("a.csv", "source,target\na,b\n,c\n", "row 3, column source: expected a node, got an"),
        ("a.csv", "source,target,weight\na,b,0\n", "row 2, column weight: expected a number"),
        ("a.csv", "source,target,weight\na,b,\n", "column weight: expected a number above 0"),
        ("a.csv", "source,target,weight\na,b,x\n", 'column weight: expected a number, got "x"'),
    ],
)
def test_error_names_the_place_in_a_bad_edge_list(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(DataError) as error:
        load_edges(tmp_path / name, directed=False)
    assert message in str(error.value)
    assert name in str(error.value)


def test_folder_is_read_by_the_name_of_its_edge_list(tmp_path: Path) -> None:
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
    kept, held_out = hold_out(edges, 0.5, seed=0)
    assert (len(kept), len(held_out)) == (90, 90)
    assert edge_set(kept) | edge_set(held_out) == edge_set(edges)
    assert connected_components(kept.adjacency(), directed=False)[0] == 1
    fewest, most = hold_out(edges, 0.99, seed=0)
    assert (len(fewest), len(most)) == (59, 121)


def test_tree_has_no_edge_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a b\na c\nc d\n")
    with pytest.raises(DataError, match="expected some of the 3 edges to be free"):
        hold_out(load_edges(tmp_path / "a.txt", directed=False), 0.5, seed=0)


def test_pairs_without_an_edge_are_a_user_and_an_item_in_a_bipartite_graph(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"u{u} i{i}" for u, i in rng.integers(20, size=(100, 2))]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    edges = load_edges(tmp_path / "a.txt", directed=False)
    source, target = non_edges(hold_out(edges, 0.2, 0), 500, seed=0)
    pairs = {(edges.ids[a], edges.ids[b]) for a, b in zip(source, target, strict=True)}
    assert {(a[0], b[0]) for a, b in pairs} == {("u", "i")}
    assert not pairs & edge_set(edges).keys()
