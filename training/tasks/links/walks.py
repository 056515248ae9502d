"""Biased random walks over a graph: node2vec (Grover and Leskovec, 2016, arXiv:1607.00653).

Many walkers take each step together. The next node is proposed by edge weight from alias tables
(Walker, 1977) and then kept or drawn again by the bias of p and q, as KnightKing does it (Yang et
al., 2019): the memory is that of the edges, where tables for every pair of them would take the sum
of all squared degrees.

Shapes: N nodes, E arcs of the adjacency matrix, W walkers, L walk length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

Nodes = npt.NDArray[np.int32]
Arcs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Seed = int | np.random.SeedSequence

# Walkers that step together: their arrays stay within the CPU's cache.
BLOCK_WALKERS = 1 << 15
# Stands behind the end of a walk that came to a node without an arc out of it.
NO_NODE = -1


class Walker:
    """Draws walks.

    Args:
        adjacency: Weights above 0, float64 [N, N]; symmetric for an undirected graph.
        walk_length: Nodes of a walk, L.
        p: Return: below 1, walks go back to where they came from more often.
        q: In and out: below 1, walks leave the neighbourhood of where they came from more often.
            A step takes about as many draws as the largest of p, q, 1/p and 1/q, at worst.
    """

    def __init__(self, adjacency: csr_array, walk_length: int, p: float, q: float) -> None:
        adjacency.sort_indices()
        self.n_nodes: int = adjacency.shape[0]
        self._length = walk_length
        self._start: Arcs = adjacency.indptr[:-1].astype(np.int64)
        self._degree = np.diff(adjacency.indptr)
        self._target: Nodes = adjacency.indices.astype(np.int32)
        self._alias: tuple[Floats, Arcs] | None = None
        if np.ptp(adjacency.data) > 0:
            self._alias = alias_tables(adjacency.indptr, adjacency.data)
        self._back, self._out = 1 / p, 1 / q
        if self._biased:
            self._weight: Floats = adjacency.data
            self._strength: Floats = adjacency.sum(axis=1)
            source = np.repeat(np.arange(self.n_nodes), self._degree)
            self._keys = self._key(source, self._target)
            # Says of most pairs that no arc joins them at a tenth of the time that a search takes.
            self._shift = np.uint64(62 - len(self._keys).bit_length())
            self._maybe = np.zeros(4 << len(self._keys).bit_length(), dtype=np.bool_)
            self._maybe[self._hash(self._keys)] = True

    @property
    def _biased(self) -> bool:
        return (self._back, self._out) != (1, 1)

    def walks(self, num_walks: int, seed: Seed) -> Iterator[Nodes]:
        """Start ``num_walks`` walks at each node, in a new random order each time.

        Yields:
            Blocks of walks, int32 [W, L], padded with -1.
        """
        rng = np.random.default_rng(seed)
        for _ in range(num_walks):
            starts = rng.permutation(self.n_nodes).astype(np.int32)
            for first in range(0, self.n_nodes, BLOCK_WALKERS):
                yield self._block(starts[first : first + BLOCK_WALKERS], rng)

    def _block(self, starts: Nodes, rng: np.random.Generator) -> Nodes:
        steps = np.full((self._length, len(starts)), NO_NODE, dtype=np.int32)
        steps[0] = starts
        for i in range(1, self._length):
            [walking] = np.nonzero(self._degree[steps[i - 1]] * (steps[i - 1] != NO_NODE))
            here = steps[i - 1, walking]
            if i == 1 or not self._biased:
                steps[i, walking] = self._propose(here, rng)
            else:
                steps[i, walking] = self._second_order(steps[i - 2, walking], here, rng)
        return np.ascontiguousarray(steps.T)

    def _propose(self, here: Nodes, rng: np.random.Generator) -> Nodes:
        """A neighbour of each node by edge weight, int32 [W]."""
        # The whole part of one random number picks an arc, its fraction decides for the alias.
        position = rng.random(len(here)) * self._degree[here]
        offset = position.astype(np.int64)
        arc = self._start[here] + offset
        if self._alias is not None:
            threshold, alias = self._alias
            arc = np.where(position - offset < threshold[arc], arc, alias[arc])
        chosen: Nodes = self._target[arc]
        return chosen

    def _second_order(self, before: Nodes, here: Nodes, rng: np.random.Generator) -> Nodes:
        """A neighbour by edge weight times bias, int32 [W].

        The bias is 1/p for the node before, 1 for its neighbours and 1/q for all others. A dart is
        thrown at a board as high as the last two; what 1/p rises above it hangs on the board's
        side, so that a small p does not make most darts miss.
        """
        low, high = min(1.0, self._out), max(1.0, self._out)
        board, side = self._strength[here] * high, np.zeros(len(here))
        if self._back > high:
            arc, found = self._find(self._key(here, before))
            side = np.where(found, self._weight[arc] * (self._back - high), 0.0)
        chosen = before.copy()
        # Where only one arc leads on, no dart has to hit it.
        single = self._degree[here] == 1
        chosen[single] = self._target[self._start[here[single]]]
        [waiting] = np.nonzero(~single)
        while waiting.size:
            on_board = rng.random(len(waiting)) * (board + side)[waiting] >= side[waiting]
            waiting = waiting[on_board]
            came_from = before[waiting]
            proposed = self._propose(here[waiting], rng)
            dart = rng.random(len(waiting)) * high
            kept = dart < np.where(proposed == came_from, self._back, low)
            # Only a dart between the biases of a near and of a far node asks which one this is.
            [asked] = np.nonzero(~kept & (proposed != came_from))
            near = self._are_joined(came_from[asked], proposed[asked])
            kept[asked] = near if self._out < 1 else ~near
            chosen[waiting[kept]] = proposed[kept]
            waiting = waiting[~kept]
        return chosen

    def _key(self, source: npt.NDArray[Any], target: Nodes) -> Arcs:
        key: Arcs = source.astype(np.int64) * self.n_nodes + target
        return key

    def _hash(self, key: Arcs) -> npt.NDArray[np.uint64]:
        """Places in the filter, by Fibonacci hashing."""
        return (key.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> self._shift

    def _find(self, key: Arcs) -> tuple[Arcs, npt.NDArray[np.bool_]]:
        """Positions of arcs, and whether they are there at all."""
        arc = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return arc, self._keys[arc] == key

    def _are_joined(self, source: Nodes, target: Nodes) -> npt.NDArray[np.bool_]:
        key = self._key(source, target)
        joined: npt.NDArray[np.bool_] = self._maybe[self._hash(key)]
        _, joined[joined] = self._find(key[joined])
        return joined


def alias_tables(indptr: npt.NDArray[Any], weights: Floats) -> tuple[Floats, Arcs]:
    """Alias tables of all rows of a sparse matrix, without a loop over rows or arcs.

    A draw picks an arc of the row uniformly and keeps it with the probability of its threshold;
    otherwise it takes the arc's alias. Follows the sweep of Hübschle-Schneider and Sanders (2019,
    arXiv:1903.00227): light arcs, below the row's mean, are filled up in order by heavy ones, and a
    heavy one that gave too much by the next heavy one. Running totals of what lacks and of what is
    spare say who fills whom. They are integers: so both are exactly equal at the end of each row,
    and one running total serves all rows.

    Args:
        indptr: Where each row starts, [N + 1].
        weights: Above 0, float64 [E]; one below 1e-12 of its row's sum may count as 0.

    Returns:
        Thresholds, float64 [E], and aliases as positions in ``weights``, int64 [E].
    """
    degree = np.diff(indptr).astype(np.int64)
    row = np.repeat(np.arange(len(degree)), degree)
    unit = 2.0 ** (62 - len(weights).bit_length())  # so that a total over all arcs fits int64
    share = np.rint(weights / np.bincount(row, weights)[row] * unit).astype(np.int64)
    total = np.diff(np.concatenate(([0], np.cumsum(share)))[indptr])[row]
    balance = share * degree[row] - total  # sums to 0 over each row
    [light], [heavy] = np.nonzero(balance < 0), np.nonzero(balance >= 0)
    threshold, alias = np.ones(len(weights)), np.arange(len(weights))
    if not len(light):
        return threshold, alias

    filled, spare = np.cumsum(-balance[light]), np.cumsum(balance[heavy])
    filled_before = filled + balance[light]
    threshold[light] = 1 + balance[light] / total[light]
    alias[light] = heavy[np.searchsorted(spare, filled_before, side="right")]

    # The light arc at which a heavy one runs out of what it can spare.
    last = np.minimum(np.searchsorted(filled, spare, side="right"), len(light) - 1)
    [poor] = np.nonzero((filled_before[last] < spare) & (spare < filled[last]))
    threshold[heavy[poor]] = 1 - (filled[last] - spare)[poor] / total[heavy[poor]]
    alias[heavy[poor]] = heavy[poor + 1]
    return threshold, alias
