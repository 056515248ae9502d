"""Measure the nearest-node search of graph_recall: ``python -m bench.ann``.

Each call asks for the neighbors of one node, as a request does, on one thread, as in a worker. The
approximate index is compared with the exact search that it replaces.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from handlers.models.graph_recall import (
    INDEX_FILE,
    MAX_EXACT,
    Neighbours,
    Nodes,
    Vectors,
)
from handlers.request_rows import MAX_TOP_K

# A graph of a million nodes may have this many communities.
N_GROUPS = 2_000
SPREAD = 0.7  # standard deviation of the noise around a center


@dataclass(frozen=True)
class Config:
    """Measure latency and recall of the nearest-node search.

    Attributes:
        n_vectors: Number of nodes; above 100,000, because smaller graphs have no index.
        dim: Width of a vector.
        queries: Number of nodes to ask for.
        top_k: Numbers of neighbors to ask for, at most 500 each.
        seed: Seed of the vectors and the queries.
    """

    n_vectors: int = 1_000_000
    dim: int = 64
    queries: int = 200
    top_k: tuple[int, ...] = (20, 500)
    seed: int = 0


def scattered(config: Config) -> Vectors:
    """Draw vectors uniform in direction, the hardest case for an index, float32 [N, D]."""
    rng = np.random.default_rng(config.seed)
    return _unit(rng.standard_normal((config.n_vectors, config.dim), dtype=np.float32))


def grouped(config: Config) -> Vectors:
    """Draw vectors around centers, like an embedding of communities, float32 [N, D]."""
    rng = np.random.default_rng(config.seed)
    centers = rng.standard_normal((N_GROUPS, config.dim), dtype=np.float32)
    noise = rng.standard_normal((config.n_vectors, config.dim), dtype=np.float32)
    return _unit(centers[rng.integers(N_GROUPS, size=config.n_vectors)] + SPREAD * noise)


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def timed(neighbours: Neighbours, queries: Nodes, top_k: int) -> tuple[list[Nodes], list[float]]:
    """Return the nearest nodes of each query, and the milliseconds that each query took."""
    found, latencies_ms = [], []
    for i in range(len(queries)):
        start = time.perf_counter()
        [(nodes, _)] = neighbours.nearest(queries[i : i + 1], [top_k])
        latencies_ms.append((time.perf_counter() - start) * 1e3)
        found.append(nodes)
    return found, latencies_ms


def index_size_bytes(neighbours: Neighbours) -> int:
    """Return the size of the index file in an archive."""
    with tempfile.TemporaryDirectory() as folder:
        neighbours.save(Path(folder))
        return (Path(folder) / INDEX_FILE).stat().st_size


def measure(name: str, vectors: Vectors, config: Config, table: Table) -> None:
    """Measure both searches and add a row to the table for each of them and each top_k."""
    start = time.perf_counter()
    indexed = Neighbours.build(vectors)
    built_s = time.perf_counter() - start
    size = f"{built_s:.0f} s, {index_size_bytes(indexed) / 1e6:.0f} MB"
    queries = np.random.default_rng(config.seed + 1).integers(len(vectors), size=config.queries)
    for k in config.top_k:
        exact, exact_ms = timed(Neighbours(vectors), queries, k)
        near, near_ms = timed(indexed, queries, k)
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, near, strict=True)])
        for search, built, recall_at_k, latencies in (
            ("exact", "", 1.0, exact_ms),
            ("index", size, recall, near_ms),
        ):
            p50, p99 = np.percentile(latencies, (50, 99))
            row = (name, str(k), search, built, f"{recall_at_k:.4f}", f"{p50:.2f}", f"{p99:.2f}")
            table.add_row(*row)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, args=argv)
    if config.n_vectors <= MAX_EXACT or not all(1 <= k <= MAX_TOP_K for k in config.top_k):
        print(
            f"error: expected --n-vectors above {MAX_EXACT} and --top-k of 1 to {MAX_TOP_K}",
            file=sys.stderr,
        )
        return 1
    table = Table(
        *("vectors", "top k", "search", "built", "recall", "p50 ms", "p99 ms"),
        title=f"{config.n_vectors:,} x {config.dim}, one thread, {config.queries} queries",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    with threadpool_limits(1):
        measure("grouped", grouped(config), config, table)
        measure("scattered", scattered(config), config, table)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
