"""The default graph: communities whose true edge probabilities are the ceiling.

Shapes: N nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.data.files import read_parquet
from training.folders import writing_folder

EDGES_FILE = "edges.csv"
TRUTH_FILE = "edges_truth.parquet"

N_BLOCKS = 10
DEGREE = 12
# Share of a node's edges that stay within its block; the others may end anywhere.
MIXING = 0.8
_SEED = 1

Matrix = npt.NDArray[np.float64]


def draw_communities(n_nodes: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a degree-corrected block model (Karrer and Newman, 2011, arXiv:1008.3926).

    Args:
        n_nodes: Number of nodes; a few may have no edge, so that the edge list lacks them.
        seed: Seed of the draw.

    Returns:
        The edges (``source`` and ``target``, such as "node_17"), and the truth of each node:
        ``node``, its ``block``, and its ``pull``, to which its expected degree is proportional.
    """
    rng = np.random.default_rng(seed)
    block = rng.permutation(n_nodes) % N_BLOCKS
    pull = np.minimum(rng.pareto(2.5, n_nodes) + 1, 10)
    truth = pd.DataFrame(
        {"node": [f"node_{i}" for i in range(n_nodes)], "block": block, "pull": pull}
    )
    source, target = np.triu_indices(n_nodes, k=1)
    expected = expected_edges(truth)[source, target]
    drawn = rng.random(len(source)) < expected
    names = truth["node"].to_numpy()
    edges = pd.DataFrame({"source": names[source[drawn]], "target": names[target[drawn]]})
    return edges.sample(frac=1, random_state=seed), truth


def expected_edges(truth: pd.DataFrame) -> Matrix:
    """Return the probability of an edge between any two nodes, float64 [N, N].

    No score ranks links better.

    Args:
        truth: ``block`` and ``pull`` of each node, N rows.
    """
    block, pull = truth["block"].to_numpy(), truth["pull"].to_numpy()
    same = block[:, None] == block
    probability = np.outer(pull, pull) * (MIXING * same + (1 - MIXING) / N_BLOCKS)
    np.fill_diagonal(probability, 0)
    scaled: Matrix = (probability * (DEGREE * len(truth) / probability.sum())).clip(max=1)
    return scaled


def generate_communities(folder: Path, n_nodes: int = 2_000) -> None:
    """Write the edges and their truth, unless the folder exists.

    Args:
        folder: Folder to make, such as ``data/graph``; it appears whole or not at all.
        n_nodes: Number of nodes.

    Raises:
        OSError: If the folder cannot be written.
    """
    if folder.exists():
        return
    edges, truth = draw_communities(n_nodes, _SEED)
    with writing_folder(folder) as unfinished:
        edges.to_csv(unfinished / EDGES_FILE, index=False)
        truth.to_parquet(unfinished / TRUTH_FILE, index=False)


def read_truth(folder: Path, ids: Sequence[str]) -> pd.DataFrame:
    """Read the truth of some nodes of a generated graph, in their order."""
    return read_parquet(folder / TRUTH_FILE).set_index("node").loc[list(ids)]
