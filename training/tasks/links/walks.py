"""Biased random walks over a graph: node2vec (Grover and Leskovec, 2016, arXiv:1607.00653).

Many walks take each step together. The next node is proposed in proportion to edge weight, from
alias tables (Walker, 1977), and then accepted or drawn again by the bias of p and q: rejection
sampling, as in KnightKing (Yang et al., 2019). It needs memory in proportion to the number of
edges; alias tables of the biased probabilities, one for each arc that a walk can come from, would
need it in proportion to the sum of all squared degrees.

An arc is an entry of the adjacency matrix: one direction of an edge.

Shapes: N nodes, E arcs, W walks that step together, L walk length.
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

# Number of walks that step together: their arrays fit in the CPU's cache.
BLOCK_WALKS = 1 << 15
# Padding of a walk that ended early, at a node without outgoing arcs.
NO_NODE = -1


class Walker:
    """Draws walks.

    A step takes, at worst, about as many draws as the largest of p, q, 1/p and 1/q.

    Args:
        adjacency: Weights above 0, float64 [N, N]; symmetric for an undirected graph.
        walk_length: Number of nodes of a walk, L.
        p: Return parameter: below 1, walks go back to the previous node more often.
        q: In-out parameter: below 1, walks leave the neighborhood of the previous node more often.
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
            # A Bloom filter of the arcs, with one hash: it excludes most pairs without an arc in a
            # tenth of the time of a binary search.
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
            for first in range(0, self.n_nodes, BLOCK_WALKS):
                yield self._block(starts[first : first + BLOCK_WALKS], rng)

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
        """Draw a neighbor of each node in proportion to edge weight, int32 [W]."""
        # One random number does for both draws of the alias method: its integer part picks an arc,
        # its fraction chooses between the arc and its alias.
        position = rng.random(len(here)) * self._degree[here]
        offset = position.astype(np.int64)
        arc = self._start[here] + offset
        if self._alias is not None:
            threshold, alias = self._alias
            arc = np.where(position - offset < threshold[arc], arc, alias[arc])
        chosen: Nodes = self._target[arc]
        return chosen

    def _second_order(self, before: Nodes, here: Nodes, rng: np.random.Generator) -> Nodes:
        """Draw a neighbor in proportion to edge weight times bias, int32 [W].

        The bias of a neighbor is 1/p if it is the previous node, 1 if it is a neighbor of the
        previous node, and 1/q otherwise. A neighbor proposed by weight is accepted with probability
        bias / high, where high is the larger of 1 and 1/q.

        1/p may exceed high. Raising high to 1/p would then reject most proposals. Instead, the
        excess weight * (1/p - high) of the previous node's arc is set apart: the walk returns at
        once with that share of the total, and draws by rejection otherwise.
        """
        low, high = min(1.0, self._out), max(1.0, self._out)
        proposals, excess = self._strength[here] * high, np.zeros(len(here))
        if self._back > high:
            arc, found = self._find(self._key(here, before))
            excess = np.where(found, self._weight[arc] * (self._back - high), 0.0)
        chosen = before.copy()
        # A node with one arc leaves no choice, so no proposal can be rejected.
        single = self._degree[here] == 1
        chosen[single] = self._target[self._start[here[single]]]
        [waiting] = np.nonzero(~single)
        while waiting.size:
            drawn = rng.random(len(waiting)) * (proposals + excess)[waiting]
            waiting = waiting[drawn >= excess[waiting]]  # the others return to the previous node
            came_from = before[waiting]
            proposed = self._propose(here[waiting], rng)
            drawn = rng.random(len(waiting)) * high
            accepted = drawn < np.where(proposed == came_from, self._back, low)
            # Whether the proposed node is a neighbor of the previous one matters, and is looked up,
            # only if the number lies between the two biases.
            [undecided] = np.nonzero(~accepted & (proposed != came_from))
            near = self._are_joined(came_from[undecided], proposed[undecided])
            accepted[undecided] = near if self._out < 1 else ~near
            chosen[waiting[accepted]] = proposed[accepted]
            waiting = waiting[~accepted]
        return chosen

    def _key(self, source: npt.NDArray[Any], target: Nodes) -> Arcs:
        key: Arcs = source.astype(np.int64) * self.n_nodes + target
        return key

    def _hash(self, key: Arcs) -> npt.NDArray[np.uint64]:
        """Return positions in the filter, by Fibonacci hashing."""
        return (key.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> self._shift

    def _find(self, key: Arcs) -> tuple[Arcs, npt.NDArray[np.bool_]]:
        """Return the positions of arcs, and whether there is such an arc."""
        arc = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return arc, self._keys[arc] == key

    def _are_joined(self, source: Nodes, target: Nodes) -> npt.NDArray[np.bool_]:
        key = self._key(source, target)
        joined: npt.NDArray[np.bool_] = self._maybe[self._hash(key)]
        _, joined[joined] = self._find(key[joined])
        return joined


def alias_tables(indptr: npt.NDArray[Any], weights: Floats) -> tuple[Floats, Arcs]:
    """Build the alias tables of all rows of a sparse matrix, without a loop over rows or arcs.

    A draw picks an arc of the row uniformly and keeps it with the probability of its threshold;
    otherwise it takes the arc's alias.

    The construction is the sweep of Hübschle-Schneider and Sanders (2019, arXiv:1903.00227). An arc
    is light if its weight is below the row's mean, and heavy otherwise. In order, each light arc is
    filled up to the mean by the current heavy arc; a heavy arc that thereby falls below the mean is
    filled up by the next heavy arc. Running totals of what light arcs lack and of what heavy arcs
    can spare show which arc fills which. The totals are integers, so that both are exactly equal at
    the end of each row, and one running total serves all rows.

    Args:
        indptr: Position of each row's first weight, int [N + 1].
        weights: Weights above 0, float64 [E]; one below 1e-12 of its row's sum may count as 0.

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

    # For each heavy arc, the light arc whose demand exceeds what is left to spare.
    last = np.minimum(np.searchsorted(filled, spare, side="right"), len(light) - 1)
    [poor] = np.nonzero((filled_before[last] < spare) & (spare < filled[last]))
    threshold[heavy[poor]] = 1 - (filled[last] - spare)[poor] / total[heavy[poor]]
    alias[heavy[poor]] = heavy[poor + 1]
    return threshold, alias


class WalkSentences:
    """Walks as the sentences of skip-gram, drawn anew for each pass instead of held in memory.

    Args:
        walker: Draws the walks.
        num_walks: Number of walks from each node in a pass.
        seed: Seed of all passes.
    """

    def __init__(self, walker: Walker, num_walks: int, seed: int) -> None:
        self._walker, self._num_walks = walker, num_walks
        self._seeds = np.random.SeedSequence(seed)

    def __len__(self) -> int:
        """Return the number of walks of a pass."""
        return self._num_walks * self._walker.n_nodes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the walks of a new pass."""
        for walks in self._draw():
            lengths = (walks != NO_NODE).sum(axis=1).tolist()
            for walk, length in zip(walks.tolist(), lengths, strict=True):
                yield walk[:length]

    def visits(self) -> dict[int, int]:
        """Count how often the walks of a new pass visit each node."""
        counts = np.zeros(self._walker.n_nodes, dtype=np.int64)
        for walks in self._draw():
            counts += np.bincount(walks[walks != NO_NODE], minlength=len(counts))
        return dict(enumerate(counts.tolist()))

    def _draw(self) -> Iterator[Nodes]:
        [seed] = self._seeds.spawn(1)
        return self._walker.walks(self._num_walks, seed)
