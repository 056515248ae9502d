"""Does a score tell edges that were held out from pairs of nodes without an edge?

Shapes: N nodes, B pairs of nodes, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.graphs import Edges, Nodes, non_edges
from training.metrics import auc
from training.retrieval import Scores, expected_ranks, retrieval_report

# More would move an AUC of .9 by less than .003.
MAX_PAIRS = 10_000
_BLOCK = 1 << 24  # scores in memory at once

Vectors = npt.NDArray[np.float32]
# Scores of every node for each of some nodes, [B, N].
Scorer = Callable[[Nodes], Scores]


def cosine_scorer(vectors: Vectors) -> Scorer:
    """Score by the cosine of vectors of unit length, float32 [N, D]."""
    return lambda sources: vectors[sources] @ vectors.T


def baselines(train: Edges) -> dict[str, Scorer]:
    """Score by the product of degrees, and by the number of neighbours in common."""
    adjacency = train.adjacency()
    joined = csr_array((adjacency + adjacency.T) > 0).astype(np.float32)
    degree = joined.sum(axis=1)
    return {
        "popularity": lambda sources: degree[sources, None] * degree,
        "common neighbours": lambda sources: (joined[sources] @ joined).toarray(),
    }


def reports(
    scorers: Mapping[str, Scorer], train: Edges, test: Edges, seed: int
) -> dict[str, dict[str, float]]:
    """Measure scores on edges that were held out.

    Args:
        scorers: By name.
        train: The edges that are known.
        test: The edges to find; of very many, a sample.
        seed: Of the sample and of the pairs without an edge.

    Returns:
        By name, ``link_auc``, edges against as many pairs without one; and how high the target of
        an edge stands among all nodes that its source is not known to be joined to.
    """
    edges = _sample(test, seed)
    others = non_edges([train, test], len(edges), seed)
    labels = np.repeat([1, 0], len(edges))
    source, target = np.hstack(((edges.source, edges.target), others))
    known = train.adjacency()
    return {
        name: {
            "link_auc": auc(labels, _pair_scores(scorer, source, target, train.n_nodes)),
            **retrieval_report(_ranks(scorer, edges, known)),
        }
        for name, scorer in scorers.items()
    }


def hadamard_auc(vectors: Vectors, train: Edges, test: Edges, seed: int) -> float:
    """AUC of a logistic regression on the products of the vectors' elements.

    The usual measure of papers on node embeddings; the regression learns from training edges.

    Args:
        vectors: float32 [N, D].
        train: Edges to learn from.
        test: Edges to tell from pairs without one.
        seed: Of the pairs without an edge.
    """
    inputs, labels = [], []
    for i, edges in enumerate((_sample(train, seed), _sample(test, seed))):
        others = non_edges([train, test], len(edges), seed + i)
        source, target = np.hstack(((edges.source, edges.target), others))
        inputs.append(vectors[source] * vectors[target])
        labels.append(np.repeat([1, 0], len(edges)))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(inputs[0], labels[0])
    return auc(labels[1], model.decision_function(inputs[1]))


def _sample(edges: Edges, seed: int) -> Edges:
    if len(edges) <= MAX_PAIRS:
        return edges
    return edges.select(np.random.default_rng(seed).choice(len(edges), MAX_PAIRS, replace=False))


def _pair_scores(scorer: Scorer, sources: Nodes, targets: Nodes, n_nodes: int) -> Scores:
    return np.concatenate(
        [
            np.take_along_axis(scorer(sources[part]), targets[part, None], axis=1)[:, 0]
            for part in _parts(len(sources), n_nodes)
        ]
    )


def _ranks(scorer: Scorer, edges: Edges, known: csr_array) -> npt.NDArray[np.float64]:
    ranks = []
    for part in _parts(len(edges), edges.n_nodes):
        sources = edges.source[part]
        excluded = known[sources].toarray() > 0
        excluded[np.arange(len(sources)), sources] = True
        ranks.append(expected_ranks(scorer(sources), edges.target[part], excluded))
    return np.concatenate(ranks)


def _parts(n_rows: int, n_nodes: int) -> Iterator[slice]:
    step = max(1, _BLOCK // n_nodes)
    return (slice(start, start + step) for start in range(0, n_rows, step))
