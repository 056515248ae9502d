"""Does a score tell edges that were held out from pairs of nodes without an edge?

Shapes: N nodes, B pairs of nodes, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows
from training.metrics.ranking import auc
from training.metrics.retrieval import Scores, expected_ranks, retrieval_report
from training.tasks.links.data import Edges, Nodes, non_edges

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


class LinksEvaluation(Evaluation):
    """Edges that were held out, of very many a sample.

    A result is the score of an edge, the score of a pair without one, and how high the target of
    the edge stands among all nodes that its source is not known to be joined to, [R, 3].

    Args:
        train: The edges that are known.
        test: The edges to find.
        seed: Of the sample and of the pairs without an edge.
        oracle: The truth's scores, on synthetic data.
        table: Source and target of the edges as they were read.
        data_sha256: Tells the data from other data.
    """

    primary = "link_auc"
    chance = 0.5
    min_ratio: Mapping[str, float] = {"link_auc": 0.99}
    floor = "popularity"

    def __init__(
        self,
        train: Edges,
        test: Edges,
        seed: int,
        oracle: Scorer | None,
        table: pd.DataFrame,
        data_sha256: str,
    ) -> None:
        self.train, self.test = train, test
        self.oracle, self.train_frame, self.data_sha256 = oracle, table, data_sha256
        self.edges = _sample(test, seed)
        self.others = non_edges([train, test], len(self.edges), seed)
        self.frame = pd.DataFrame(index=range(len(self.edges)))

    def rows(self) -> list[Any]:
        """None: an answer holds the nearest nodes only, and a score for every pair is needed."""
        return []

    def items(self) -> list[Any]:
        """The nodes."""
        return self.train.ids

    def results(self, output: ArchiveOutput) -> Results:
        """By the cosine, which for a node that the archive does not know is 0."""
        return self.measure(cosine_scorer(np.nan_to_num(output.item_vectors)))

    def measure(self, scorer: Scorer) -> Results:
        """The results of a scorer."""
        edges, n_nodes = self.edges, self.train.n_nodes
        return np.column_stack(
            [
                _pair_scores(scorer, edges.source, edges.target, n_nodes),
                _pair_scores(scorer, *self.others, n_nodes),
                _ranks(scorer, edges, self.train.adjacency()),
            ]
        )

    def baselines(self) -> dict[str, Results]:
        """Products of degrees, numbers of common neighbours and, on synthetic data, the truth."""
        scorers = baselines(self.train)
        if self.oracle is not None:
            scorers["oracle"] = self.oracle
        return {name: self.measure(scorer) for name, scorer in scorers.items()}

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """``link_auc``, edges against as many pairs without one, and what ranks come to."""
        joined, apart, ranks = results[rows].T
        labels = np.repeat([1, 0], len(ranks))
        link_auc = auc(labels, np.concatenate([joined, apart]))
        return {"link_auc": link_auc, **retrieval_report(ranks)}

    def ranks(self, results: Results) -> Results | None:
        """Of the edges' targets."""
        ranks: Results = results[:, 2]
        return ranks


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
