"""Edge lists: read them, make their edges distinct, hold some out, draw pairs without an edge.

Shapes: N nodes, E edges.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from handlers.values import LostDigitsError, to_token
from training.data.files import SUFFIXES, File
from training.data.sources import DataError, DataSet, Source
from training.data.tables import read_table

SOURCE, TARGET, WEIGHT = "source", "target", "weight"
# Files of lines "source target [weight]", without a header.
LINE_SUFFIXES = (".edgelist", ".edgelist.gz", ".txt", ".txt.gz")
# Name of the file to read when the data is a folder.
EDGES_STEM, EDGES_SUFFIXES = "edges", (*SUFFIXES, *LINE_SUFFIXES)
COMMENTS = ("#", "%")

Nodes = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Edges:
    """Distinct edges of a graph.

    Attributes:
        ids: Ids of the nodes by number, N: first all sources in order of appearance, then the
            nodes that are only targets.
        source: Source node of each edge, int64 [E]; below ``target`` in an undirected graph.
        target: Target node of each edge, int64 [E].
        weight: Weight of each edge, above 0, float64 [E].
        directed: Whether walks may follow an edge only from source to target.
    """

    ids: list[str]
    source: Nodes
    target: Nodes
    weight: Weights
    directed: bool

    @property
    def n_nodes(self) -> int:
        """Number of nodes, N."""
        return len(self.ids)

    def __len__(self) -> int:
        """Return the number of edges, E."""
        return len(self.source)

    def select(self, chosen: npt.NDArray[Any]) -> Edges:
        """Select edges by position or mask; all nodes stay."""
        parts = self.source[chosen], self.target[chosen], self.weight[chosen]
        return Edges(self.ids, *parts, self.directed)

    def adjacency(self) -> csr_array:
        """Return the matrix of weights, float64 [N, N]; symmetric unless the graph is directed."""
        shape = (self.n_nodes, self.n_nodes)
        one_way = coo_array((self.weight, (self.source, self.target)), shape=shape).tocsr()
        return csr_array(one_way if self.directed else one_way + one_way.T)


def read_edges(data: DataSet) -> pd.DataFrame:
    """Read an edge list.

    Args:
        data: Tables with the columns source, target and optionally weight; or .txt or .edgelist
            files, each line of which is ``source target [weight]`` or a comment after # or %.

    Returns:
        A row for each edge: ``source`` and ``target`` as tokens, ``weight`` above 0 as float32.

    Raises:
        DataError: If a file is unreadable or empty, an edge lacks a node or has a weight that is
            not above 0, or every edge is a loop.
    """
    frames = [
        _read_lines(part)
        if isinstance(part, File) and part.path.endswith(LINE_SUFFIXES)
        else _read_table(part)
        for part in data.table
    ]
    edges = pd.concat(frames, ignore_index=True)
    if (edges[SOURCE] == edges[TARGET]).all():
        raise DataError(f"{data.name}: expected an edge between two nodes, got only loops")
    return edges


def _read_table(part: Source) -> pd.DataFrame:
    table = read_table([part], [], [SOURCE, TARGET], [WEIGHT])
    if WEIGHT not in table:
        table[WEIGHT] = np.float32(1)
    for name, valid, expected in (
        (SOURCE, table[SOURCE].notna(), "a node"),
        (TARGET, table[TARGET].notna(), "a node"),
        (WEIGHT, table[WEIGHT] > 0, "a number above 0"),
    ):
        if not valid.all():
            row = int(valid.argmin())
            got = "an empty cell" if pd.isna(table[name][row]) else f"{table[name][row]:g}"
            where = f"{part.name}: row {row + part.first_row}, column {name}"
            raise DataError(f"{where}: expected {expected}, got {got}")
    return table[[SOURCE, TARGET, WEIGHT]]


def _read_lines(part: File) -> pd.DataFrame:
    try:
        with part.open() as file:
            edges = list(_parse(part.name, io.TextIOWrapper(file, encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{part.name}: cannot be read: {error}") from error
    if not edges:
        raise DataError(f"{part.name}: has no edges")
    return pd.DataFrame(edges, columns=[SOURCE, TARGET, WEIGHT]).astype({WEIGHT: np.float32})


def _parse(name: str, lines: Iterable[str]) -> Iterable[tuple[str, str, float]]:
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith(COMMENTS):
            continue
        where = f"{name}: line {number}"
        if len(fields) not in (2, 3):
            got = line.strip()[:60]
            raise DataError(f'{where}: expected "source target [weight]", got "{got}"')
        try:
            weight = float(fields[2]) if len(fields) == 3 else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise DataError(f'{where}: expected a weight above 0, got "{fields[2]}"')
        try:
            source, target = to_token(fields[0]), to_token(fields[1])
        except LostDigitsError as error:
            got = line.strip()[:60]
            raise DataError(
                f'{where}: expected ids, got "{got}": {error}; write them as integers or as text'
            ) from error
        yield str(source), str(target), weight


def to_edges(table: pd.DataFrame, *, directed: bool) -> Edges:
    """Number the nodes and merge repeated edges.

    Edges between the same two nodes become one, with the sum of their weights; in an undirected
    graph that includes the reverse edge. Loops are dropped.

    Args:
        table: Edges as :func:`read_edges` returns them.
        directed: Whether edges point from source to target.
    """
    table = table[table[SOURCE] != table[TARGET]]
    weight = table[WEIGHT].to_numpy(np.float64)
    source, target = table[SOURCE].to_numpy(object), table[TARGET].to_numpy(object)
    return _distinct(source, target, weight, directed)


def _distinct(source: Any, target: Any, weight: Weights, directed: bool) -> Edges:
    codes, ids = pd.factorize(np.concatenate((source, target)))
    a, b = codes[: len(source)].astype(np.int64), codes[len(source) :].astype(np.int64)
    if not directed:
        a, b = np.minimum(a, b), np.maximum(a, b)
    keys, inverse = np.unique(a * len(ids) + b, return_inverse=True)
    total = np.bincount(inverse, weight).astype(np.float64)
    return Edges([str(i) for i in ids], keys // len(ids), keys % len(ids), total, directed)


def hold_out(edges: Edges, share: float, seed: int) -> tuple[Edges, Edges]:
    """Hold out random edges, such that nodes that were connected stay connected.

    Args:
        edges: All edges.
        share: Share of the edges to hold out; fewer when a spanning forest needs the rest.
        seed: Seed of the choice.

    Returns:
        The edges to train on, which touch every node, and those that are held out.

    Raises:
        DataError: If no edge can be held out.
    """
    cost = 1.0 + np.random.default_rng(seed).permutation(len(edges))
    shape = (edges.n_nodes, edges.n_nodes)
    # Random costs make the forest random. The most expensive of the other edges are held out.
    forest = minimum_spanning_tree(coo_array((cost, (edges.source, edges.target)), shape=shape))
    order = np.argsort(cost)
    free = order[~np.isin(cost[order], forest.data)]
    held_out = np.zeros(len(edges), dtype=np.bool_)
    held_out[free[max(0, len(free) - int(share * len(edges))) :]] = True
    if not held_out.any():
        raise DataError(
            f"expected some of the {len(edges)} edges to be free to hold out for the test, got a "
            "graph that each of them keeps connected; add edges that close a cycle"
        )
    return edges.select(~held_out), edges.select(held_out)


def non_edges(known: Sequence[Edges], n: int, seed: int) -> tuple[Nodes, Nodes]:
    """Draw pairs of nodes without an edge, uniformly and with replacement.

    In a bipartite graph, where no node is both a source and a target, each pair is a source and a
    target, as in its edges.

    Args:
        known: All edges of one graph, in parts.
        n: Number of pairs.
        seed: Seed of the draw.

    Returns:
        Sources and targets, int64 [n] each.

    Raises:
        DataError: If nearly all pairs are edges.
    """
    rng = np.random.default_rng(seed)
    n_nodes = known[0].n_nodes
    first_target = min(int(edges.target.min()) for edges in known)
    is_bipartite = max(int(edges.source.max()) for edges in known) < first_target
    edge_keys = np.concatenate([edges.source * n_nodes + edges.target for edges in known])
    pairs = np.empty((2, 0), dtype=np.int64)
    for _ in range(100):
        if is_bipartite:
            more = rng.integers([[0], [first_target]], [[first_target], [n_nodes]], (2, 2 * n))
        else:
            more = rng.integers(n_nodes, size=(2, 2 * n))
        key = more if known[0].directed else np.sort(more, axis=0)
        joined = np.isin(key[0] * n_nodes + key[1], edge_keys)
        pairs = np.hstack((pairs, more[:, ~joined & (more[0] != more[1])]))
        if pairs.shape[1] >= n:
            return pairs[0, :n], pairs[1, :n]
    raise DataError(f"expected {n} pairs of nodes without an edge to test on, found too few")
