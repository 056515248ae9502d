"""The nodes that are nearest to a node, by the cosine of their vectors.

For up to 100,000 nodes, every cosine is computed. For more, faiss finds candidates by a scan of
4-bit codes, one for each dimension: product quantization in registers (André et al., 2018,
arXiv:1812.09162). Compared with a graph index, it needs a sixteenth of the memory, is built in
seconds and keeps its recall on vectors without clusters; its time is linear in N, but small.

In both cases the candidates are scored again in float64, one by one. So a result does not depend on
the rest of the batch, and equal scores are ordered by node.

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

# Candidates from the scan of codes: .997 of the nearest 500, even for uniformly random directions.
_CANDIDATES = 2_000
# Far above the rounding error of a float32 cosine, which varies with the size of the batch.
_ROUNDING = 1e-5
# Most cosines in memory at a time, 16 MB.
_BLOCK = 1 << 22

Vectors = npt.NDArray[np.float32]
Nodes = npt.NDArray[np.int64]


class Neighbours:
    """Finds the nearest nodes.

    Args:
        vectors: Vectors of unit length, float32 [N, D].
        index: A faiss index of the same vectors; None to compute every cosine.
    """

    def __init__(self, vectors: Vectors, index: Any = None) -> None:
        self._vectors = vectors
        self._index = index

    @classmethod
    def build(cls, vectors: Vectors) -> Neighbours:
        """Build an index if there are more than 100,000 vectors; the result is reproducible."""
        if len(vectors) <= MAX_EXACT:
            return cls(vectors)
        import faiss

        # The rounding of a sum depends on the number of threads; a fixed number is repeatable.
        faiss.omp_set_num_threads(1)
        dim = vectors.shape[1]
        index = faiss.index_factory(dim, f"PQ{dim}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: len(vectors) // MAX_EXACT])
        index.add(vectors)
        return cls(vectors, index)

    def save(self, folder: Path) -> None:
        """Write the vectors and the index, if there is one."""
        np.save(folder / VECTORS_FILE, self._vectors, allow_pickle=False)
        if self._index is not None:
            import faiss

            faiss.write_index(self._index, str(folder / INDEX_FILE))

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> Neighbours:
        """Load the files of :meth:`save`; the vectors are read from disk when they are used.

        Args:
            folder: An artifact folder or an unpacked archive.
            threads: Number of threads that the index uses.
        """
        # A plain array: indexing a memmap takes twice the time.
        vectors = np.asarray(np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False))
        if not (folder / INDEX_FILE).exists():
            return cls(vectors)
        import faiss

        faiss.omp_set_num_threads(threads)
        return cls(vectors, faiss.read_index(str(folder / INDEX_FILE)))

    def nearest(self, nodes: Nodes, top_k: Sequence[int]) -> list[tuple[Nodes, Vectors]]:
        """Find the nearest other nodes of each node.

        Args:
            nodes: int64 [B].
            top_k: Number of nodes to find for each of them, 1 to 500, B long.

        Returns:
            For each node, the nearest nodes, int64 [K], best first, and their cosines, float32 [K].
            K is less than ``top_k`` if there are fewer nodes.
        """
        rows = max(1, _BLOCK // len(self._vectors))
        found = []
        for start in range(0, len(nodes), rows):
            block, ks = nodes[start : start + rows], top_k[start : start + rows]
            for node, k, candidates in zip(block, ks, self._candidates(block, ks), strict=True):
                found.append(self._rank(node, k, candidates))
        return found

    def _candidates(self, nodes: Nodes, top_k: Sequence[int]) -> list[Nodes]:
        """Find candidates for the nearest nodes, possibly the node itself too, B x int64 [C]."""
        queries = self._vectors[nodes]
        if self._index is not None:
            _, found = self._index.search(queries, _CANDIDATES)
            return [row[row >= 0] for row in found]
        cosines = queries @ self._vectors.T  # [B, N]
        # One more than requested, because the node itself is the nearest.
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
