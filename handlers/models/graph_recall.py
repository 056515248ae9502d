"""The nodes that are nearest to a node, by the cosine of their vectors.

Up to 100,000 nodes every cosine is computed. Above, a scan of 4-bit codes, one for each dimension,
finds candidates: product quantization in registers (André et al., 2018, arXiv:1812.09162), of which
faiss has an implementation. Next to a graph index it needs a sixteenth of the memory, builds in
seconds and keeps its recall on vectors without any clusters; it is linear in N, if a fast line.

Either way the candidates are scored again in float64, one by one: an answer does not depend on what
else is in the batch, and equal scores come in the order of the nodes.

Shapes: N nodes, D embedding dim, B queries, K top-k, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ARCH_VERSION = 1
META_FILE = "node2vec_meta.json"
VECTORS_FILE = "node2vec_vectors.npy"
INDEX_FILE = "node2vec.faiss"

MAX_EXACT = 100_000
DEFAULT_TOP_K = 20
MAX_TOP_K = 500

# What the scan of codes hands on: .997 of the nearest 500 even for vectors in all directions alike.
_CANDIDATES = 2_000
# Far above the rounding of a float32 cosine, whose order of summation changes with the batch.
_ROUNDING = 1e-5
# Cosines in memory at once, 16 MB.
_BLOCK = 1 << 22

Vectors = npt.NDArray[np.float32]
Nodes = npt.NDArray[np.int64]


class Neighbours:
    """Finds the nearest nodes.

    Args:
        vectors: Of unit length, float32 [N, D].
        index: Of faiss, over the same vectors; None to compute every cosine.
    """

    def __init__(self, vectors: Vectors, index: Any = None) -> None:
        self._vectors = vectors
        self._index = index

    @classmethod
    def build(cls, vectors: Vectors) -> Neighbours:
        """With an index where there are more than 100,000 vectors; the same input, the same one."""
        if len(vectors) <= MAX_EXACT:
            return cls(vectors)
        import faiss

        faiss.omp_set_num_threads(1)  # sums over threads would round differently for each number
        dim = vectors.shape[1]
        index = faiss.index_factory(dim, f"PQ{dim}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: len(vectors) // MAX_EXACT])
        index.add(vectors)
        return cls(vectors, index)

    def save(self, folder: Path) -> None:
        """Write the vectors and, where there is one, the index."""
        np.save(folder / VECTORS_FILE, self._vectors, allow_pickle=False)
        if self._index is not None:
            import faiss

            faiss.write_index(self._index, str(folder / INDEX_FILE))

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Neighbours:
        """Read what :meth:`save` wrote; the vectors stay on disk until they are looked at.

        Args:
            folder: An artifact folder or an unpacked archive.
            threads: Of the index.
        """
        # As a plain array: a memmap takes twice the time to index.
        vectors = np.asarray(np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False))
        if not (folder / INDEX_FILE).exists():
            return cls(vectors)
        import faiss

        faiss.omp_set_num_threads(threads)
        return cls(vectors, faiss.read_index(str(folder / INDEX_FILE)))

    def nearest(self, nodes: Nodes, top_k: Sequence[int]) -> list[tuple[Nodes, Vectors]]:
        """The nearest other nodes of each node, the nearest first.

        Args:
            nodes: int64 [B].
            top_k: How many for each of them, 1 to 500.

        Returns:
            For each node, nodes int64 [K] and their cosines float32 [K]; fewer than asked for where
            there are no more.
        """
        rows = max(1, _BLOCK // len(self._vectors))
        found = []
        for start in range(0, len(nodes), rows):
            block, ks = nodes[start : start + rows], top_k[start : start + rows]
            for node, k, candidates in zip(block, ks, self._candidates(block, ks), strict=True):
                found.append(self._rank(node, k, candidates))
        return found

    def _candidates(self, nodes: Nodes, top_k: Sequence[int]) -> list[Nodes]:
        """Nodes among which the nearest are, and the node itself may be, B times int64 [C]."""
        queries = self._vectors[nodes]
        if self._index is not None:
            _, found = self._index.search(queries, _CANDIDATES)
            return [row[row >= 0] for row in found]
        cosines = queries @ self._vectors.T  # [B, N]
        # One more than asked for, since the node itself is the nearest.
        places = [max(0, len(self._vectors) - k - 1) for k in top_k]
        return [
            np.flatnonzero(row >= np.partition(row, place)[place] - _ROUNDING)
            for row, place in zip(cosines, places, strict=True)
        ]

    def _rank(self, node: int, top_k: int, candidates: Nodes) -> tuple[Nodes, Vectors]:
        candidates = candidates[candidates != node]
        vectors = self._vectors[candidates].astype(np.float64)
        cosines = (vectors * self._vectors[node]).sum(axis=1).clip(-1, 1)
        best = np.lexsort((candidates, -cosines))[:top_k]
        return candidates[best], cosines[best].astype(np.float32)
