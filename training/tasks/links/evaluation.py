"""Evaluate link prediction: does a score separate held-out edges from pairs without an edge?

Shapes: N nodes, B nodes or pairs of nodes, R held-out edges, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows
from training.metrics.ranking import auc
from training.metrics.retrieval import Scores, expected_ranks, retrieval_report
from training.tasks.links.data import Edges, Nodes, non_edges

# More pairs would change an AUC of .9 by less than .003.
MAX_PAIRS = 10_000
# Number of scores in memory at a time.
_CHUNK_SCORES = 1 << 24

Vectors = npt.NDArray[np.float32]
# Scores every node as the target of a link from each source, int64 [B] -> [B, N].
ScoreNodes = Callable[[Nodes], Scores]


def score_by_cosine(vectors: Vectors) -> ScoreNodes:
    """Score by the cosine of node vectors of unit length, float32 [N, D]."""
    return lambda sources: vectors[sources] @ vectors.T


def baselines(train: Edges) -> dict[str, ScoreNodes]:
    """Score by the product of degrees, and by the number of common neighbors."""
    adjacency = train.adjacency()
    joined = csr_array((adjacency + adjacency.T) > 0).astype(np.float32)
    degree = joined.sum(axis=1)
    return {
        "popularity": lambda sources: degree[sources, None] * degree,
        "common neighbours": lambda sources: (joined[sources] @ joined).toarray(),
    }


class LinkPredictionEvaluation(Evaluation):
    """Scores of held-out edges, or of a sample where they are many.

    The three columns of the results, [R, 3], are the score of an edge, the score of a pair without
    an edge, and the rank of the edge's target among all nodes that have no training edge with its
    source.

    Args:
        train: Edges that training sees.
        test: Held-out edges.
        seed: Seed of the sample and of the pairs without an edge.
        oracle: Scores by the true probabilities; None unless the data is synthetic.
        table: Source and target of all edges as they were read.
        data_sha256: Hash of the data.

    Raises:
        DataError: If there are too few pairs without an edge.
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
        oracle: ScoreNodes | None,
        table: pd.DataFrame,
        data_sha256: str,
    ) -> None:
        self.train, self.test = train, test
        self.oracle, self.train_frame, self.data_sha256 = oracle, table, data_sha256
        self.edges = _sample(test, seed)
        self.others = non_edges([train, test], len(self.edges), seed)
        self.frame = pd.DataFrame(index=range(len(self.edges)))

    def rows(self) -> list[Any]:
        """Return no rows: answers hold only the nearest nodes, results need any pair's score."""
        return []

    def items(self) -> list[Any]:
        """Return the ids of all nodes."""
        return self.train.ids

    def results(self, output: ArchiveOutput) -> Results:
        """Score by cosine, which is 0 for a node that the archive does not know."""
        return self.measure(score_by_cosine(np.nan_to_num(output.item_vectors)))

    def measure(self, score_nodes: ScoreNodes) -> Results:
        """Score the held-out edges and as many pairs without an edge, and rank the targets."""
        edges, n_nodes = self.edges, self.train.n_nodes
        return np.column_stack(
            [
                _pair_scores(score_nodes, edges.source, edges.target, n_nodes),
                _pair_scores(score_nodes, *self.others, n_nodes),
                _ranks(score_nodes, edges, self.train.adjacency()),
            ]
        )

    def baselines(self) -> dict[str, Results]:
        """Score by degrees, common neighbors and, on the synthetic graph, the oracle."""
        found = baselines(self.train)
        if self.oracle is not None:
            found["oracle"] = self.oracle
        return {name: self.measure(score_nodes) for name, score_nodes in found.items()}

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute ``link_auc`` of edges against pairs without an edge, and metrics of the ranks."""
        positives, negatives, ranks = results[rows].T
        labels = np.repeat([1, 0], len(ranks))
        link_auc = auc(labels, np.concatenate([positives, negatives]))
        return {"link_auc": link_auc, **retrieval_report(ranks)}

    def ranks(self, results: Results) -> Results | None:
        """Return the ranks of the edges' targets."""
        ranks: Results = results[:, 2]
        return ranks


def hadamard_auc(vectors: Vectors, train: Edges, test: Edges, seed: int) -> float:
    """Measure the AUC of a logistic regression on element-wise products of node vectors.

    Papers on node embeddings usually report this one. The regression is fitted on training edges.

    Args:
        vectors: Node vectors, float32 [N, D].
        train: Edges to fit the regression on.
        test: Held-out edges.
        seed: Seed of the pairs without an edge, and of the sample where the edges are many.
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


def block_nmi(vectors: Vectors, blocks: npt.NDArray[Any], seed: int) -> float:
    """Measure how well k-means over the vectors recovers the true blocks.

    Args:
        vectors: Node vectors, float32 [N, D].
        blocks: True block of each node, int64 [N].
        seed: Seed of k-means.

    Returns:
        Normalized mutual information of clusters and blocks, from 0 to 1.
    """
    n_blocks = len(np.unique(blocks))
    clusters = KMeans(n_blocks, n_init=4, random_state=seed).fit_predict(vectors)
    return float(normalized_mutual_info_score(blocks, clusters))


def _sample(edges: Edges, seed: int) -> Edges:
    if len(edges) <= MAX_PAIRS:
        return edges
    return edges.select(np.random.default_rng(seed).choice(len(edges), MAX_PAIRS, replace=False))


def _pair_scores(score_nodes: ScoreNodes, sources: Nodes, targets: Nodes, n_nodes: int) -> Scores:
    return np.concatenate(
        [
            np.take_along_axis(score_nodes(sources[part]), targets[part, None], axis=1)[:, 0]
            for part in _chunks(len(sources), n_nodes)
        ]
    )


def _ranks(score_nodes: ScoreNodes, edges: Edges, known: csr_array) -> npt.NDArray[np.float64]:
    ranks = []
    for part in _chunks(len(edges), edges.n_nodes):
        sources = edges.source[part]
        excluded = known[sources].toarray() > 0
        excluded[np.arange(len(sources)), sources] = True
        ranks.append(expected_ranks(score_nodes(sources), edges.target[part], excluded))
    return np.concatenate(ranks)


def _chunks(n_rows: int, n_nodes: int) -> Iterator[slice]:
    step = max(1, _CHUNK_SCORES // n_nodes)
    return (slice(start, start + step) for start in range(0, n_rows, step))
