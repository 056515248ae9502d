"""Evaluation of DSSM.

Shapes: B queries, N documents, R pairs of a query and a document, D components of a vector.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer

from handlers.models.text import TokenBags, search_terms
from training.evaluation import ALL, HIT_RATE_RATIO, ArchiveOutput, Evaluation, Results, Rows
from training.golden import request_rows
from training.metrics.ranking import ranking_report
from training.metrics.retrieval import Indices, Scores, expected_ranks, retrieval_report
from training.tasks.search.data import SearchData

TOP_K = (1, 10)

_CHUNK_ROWS = 256

# Array or sparse matrix of SciPy, [B or N, D]; scores are inner products of such vectors.
Vectors: TypeAlias = Any


class SearchEvaluation(Evaluation):
    """Evaluates pairs; without labels, every document of a pair is relevant.

    The results, [R], are probabilities that the documents are relevant or, without labels, the
    ranks of the documents among all.
    """

    floor = "popularity"
    groups: Indices

    def __init__(self, data: SearchData) -> None:
        self.data, self.data_sha256 = data, data.sha256
        self.train_frame = data.train_frame
        owner = data.test.owner.numpy()
        self.frame = data.test.frame.iloc[owner]
        self.groups = owner
        self.labels = data.test.labels.numpy()
        if data.labeled:
            self.primary, self.chance = "auc", 0.5
            self.min_ratio, self.max_ratio = {"auc": 0.99}, {"logloss": 1.01}
        else:
            self.primary, self.chance = "hr_at_10", min(1.0, 10 / len(data.docs))
            self.min_ratio = {"hr_at_10": HIT_RATE_RATIO}

    def rows(self) -> list[Any]:
        """Return the distinct queries of the test split as requests."""
        return request_rows(self.data.query_columns.schema, self.data.test.frame)

    def items(self) -> list[Any]:
        """Return all documents as requests."""
        return request_rows(self.data.doc_columns.schema, self.data.doc_frame)

    def results(self, output: ArchiveOutput) -> Results:
        """Score by the cosine, calibrated by the archive's meta file if the pairs are labeled."""
        results = self.score(np.array(output.predictions, np.float32), output.item_vectors)
        if not self.data.labeled:
            return results
        calibration = output.meta["calibration"]
        probabilities: Results = expit(calibration["slope"] * results + calibration["intercept"])
        return probabilities

    def score(self, queries: Vectors, docs: Vectors) -> Results:
        """Score the test pairs.

        Args:
            queries: Vectors of the distinct queries, [B, D].
            docs: Vectors of all documents, [N, D].

        Returns:
            Inner products of labeled pairs, else the ranks of the documents among all, [R].
        """
        owner, targets = self.groups, self.data.test.docs.numpy()
        chunks = np.split(np.arange(len(owner)), range(_CHUNK_ROWS, len(owner), _CHUNK_ROWS))
        if self.data.labeled:
            products = [_dense(queries[owner[c]]) * _dense(docs[targets[c]]) for c in chunks]
            return np.concatenate([product.sum(axis=1) for product in products])
        ranks = [expected_ranks((docs @ _dense(queries[owner[c]]).T).T, targets[c]) for c in chunks]
        return np.concatenate(ranks)

    def baselines(self) -> dict[str, Results]:
        """Return popularity, TF-IDF for texts and, on synthetic data, the oracle."""
        data, n_docs = self.data, len(self.data.docs)
        popularity = torch.bincount(data.train.docs, data.train.labels, minlength=n_docs).numpy()
        if data.labeled:  # the share of relevant pairs, smoothed by one pair at the mean
            popularity = (popularity + data.train.labels.mean().item()) / (
                torch.bincount(data.train.docs, minlength=n_docs).numpy() + 1
            )
        constant = np.ones((len(data.test.queries), 1))
        baselines = {"popularity": self.score(constant, popularity[:, None])}
        if isinstance(data.docs, TokenBags):
            queries, docs = (
                frame.iloc[:, 0].fillna("") for frame in (data.train.frame, data.doc_frame)
            )
            tfidf = TfidfVectorizer(analyzer=search_terms)
            tfidf.fit(pd.concat([queries, docs[: data.n_known]]))
            test_queries = tfidf.transform(data.test.frame.iloc[:, 0].fillna(""))
            baselines["TF-IDF"] = self.score(test_queries, tfidf.transform(docs))
        if data.oracle is not None:
            baselines["oracle"] = data.oracle[data.test.order]
        return baselines

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute ranking metrics of labeled pairs, with GAUC by query, else retrieval metrics."""
        if not self.data.labeled:
            return retrieval_report(results[rows], TOP_K)
        labels = self.labels[rows]
        if len(np.unique(labels)) < 2:
            return {}
        return ranking_report(labels, results[rows], self.groups[rows])

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Return labels and probabilities, both [R], if the pairs are labeled."""
        return (self.labels, results) if self.data.labeled else None

    def ranks(self, results: Results) -> Results | None:
        """Return the results if the pairs have no labels, which makes them ranks."""
        return None if self.data.labeled else results


def _dense(vectors: Vectors) -> Scores:
    dense: Scores = vectors.toarray() if sparse.issparse(vectors) else vectors
    return dense
