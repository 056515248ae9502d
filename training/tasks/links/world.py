"""The default graph: communities that can be known, with a ceiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.folders import writing_folder

EDGES_FILE = "edges.csv"
TRUTH_FILE = "edges_truth.parquet"

N_BLOCKS = 10
DEGREE = 12
# Share of a node's edges that are drawn within its block; the others go anywhere.
MIXING = 0.8
_SEED = 1

Matrix = npt.NDArray[np.float64]


def communities(n_nodes: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a degree-corrected block model (Karrer and Newman, 2011, arXiv:1008.3926).

    Args:
        n_nodes: Number of nodes, a few of which may get no edge and so not appear.
        seed: Of the draw; the same seed gives the same graph.

    Returns:
        The edges (`source`, `target`, such as "node_17") and the truth, a row a node: `node`, its
        `block`, and `pull`, which its expected degree is proportional to.
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
    """The chance of an edge between each two nodes, float64 [N, N]: no score orders them better."""
    block, pull = truth["block"].to_numpy(), truth["pull"].to_numpy()
    same = block[:, None] == block
    chance = np.outer(pull, pull) * (MIXING * same + (1 - MIXING) / N_BLOCKS)
    np.fill_diagonal(chance, 0)
    scaled: Matrix = (chance * (DEGREE * len(truth) / chance.sum())).clip(max=1)
    return scaled


def generate_communities(folder: Path, n_nodes: int = 2_000) -> None:
    """Write `edges.csv` and `edges_truth.parquet`, unless the folder is there.

    The folder appears whole or not at all, as in `synthetic.generate_impressions`.

    Args:
        folder: The folder to make, such as `data/graph`.
        n_nodes: Number of nodes.

    Raises:
        OSError: The folder cannot be written.
    """
    if folder.exists():
        return
    edges, truth = communities(n_nodes, _SEED)
    with writing_folder(folder) as finished:
        edges.to_csv(finished / EDGES_FILE, index=False)
        truth.to_parquet(finished / TRUTH_FILE, index=False)
