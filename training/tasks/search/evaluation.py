"""What DSSM is judged on."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.special import expit
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from handlers.models.text import TokenBags, search_terms
from training.evaluation import ALL, HIT_RATE_RATIO, Answers, Evaluation, Results, Rows
from training.golden import request_rows
from training.metrics.ranking import ranking_report
from training.metrics.retrieval import Indices, Scores, expected_ranks, retrieval_report
from training.tasks.search.data import SearchData, Searches

TOP_K = (1, 10)


_CHUNK_ROWS = 256


# About so many pairs are enough to calibrate a probability by, and to see whether it is right.
_CALIBRATION_PAIRS = 200_000


# Arrays or scipy's sparse matrices, [B, K] and [N, K]: their inner products are scores.
Vectors: TypeAlias = Any


def calibration_pairs(data: SearchData, split: Searches) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that a probability is fitted to, or judged by.

    Returns:
        Query, document, int64 [R], and label, float32 [R]: the split's own pairs where they are
        labelled, else some of its queries with every document.
    """
    if data.labelled:
        return split.owner, split.docs, split.labels
    n_docs = len(data.docs)
    n_queries = min(len(split.queries), 1 + _CALIBRATION_PAIRS // n_docs)
    labels = torch.zeros(n_queries, n_docs)
    some = split.owner < n_queries
    labels[split.owner[some], split.docs[some]] = 1.0
    queries = torch.arange(n_queries).repeat_interleave(n_docs)
    return queries, torch.arange(n_docs).repeat(n_queries), labels.ravel()


class SearchEvaluation(Evaluation):
    """A result is the probability that a pair's document was meant, or without labels its rank.

    Args:
        data: The data set.
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
        if data.labelled:
            self.primary, self.chance = "auc", 0.5
            self.min_ratio, self.max_ratio = {"auc": 0.99}, {"logloss": 1.01}
        else:
            self.primary, self.chance = "hr_at_10", min(1.0, 10 / len(data.docs))
            self.min_ratio = {"hr_at_10": HIT_RATE_RATIO}

    def rows(self) -> list[Any]:
        """The distinct queries."""
        return request_rows(self.data.query_columns.schema, self.data.test.frame)

    def items(self) -> list[Any]:
        """The documents."""
        return request_rows(self.data.doc_columns.schema, self.data.doc_frame)

    def results(self, answers: Answers) -> Results:
        """By the cosine; labelled pairs by the probability that the archive's meta makes of it."""
        results = self.score(np.array(answers.predictions, np.float32), answers.item_vectors)
        if not self.data.labelled:
            return results
        calibration = answers.meta["calibration"]
        probabilities: Results = expit(calibration["slope"] * results + calibration["intercept"])
        return probabilities

    def score(self, queries: Vectors, docs: Vectors) -> Results:
        """Inner products of labelled pairs, else the rank of what was meant among all documents.

        Args:
            queries: Vectors of the test split's queries, [B, K].
            docs: Vectors of all documents, [N, K].
        """
        owner, found = self.groups, self.data.test.docs.numpy()
        chunks = np.split(np.arange(len(owner)), range(_CHUNK_ROWS, len(owner), _CHUNK_ROWS))
        if self.data.labelled:
            products = [_dense(queries[owner[c]]) * _dense(docs[found[c]]) for c in chunks]
            return np.concatenate([product.sum(axis=1) for product in products])
        ranks = [expected_ranks((docs @ _dense(queries[owner[c]]).T).T, found[c]) for c in chunks]
        return np.concatenate(ranks)

    def baselines(self) -> dict[str, Results]:
        """Popularity, shared words and, on synthetic data, the truth."""
        data, n_docs = self.data, len(self.data.docs)
        meant = torch.bincount(data.train.docs, data.train.labels, minlength=n_docs).numpy()
        if data.labelled:  # the rate, drawn to the mean where there are few pairs
            meant = (meant + data.train.labels.mean().item()) / (
                torch.bincount(data.train.docs, minlength=n_docs).numpy() + 1
            )
        constant = np.ones((len(data.test.queries), 1))
        found = {"popularity": self.score(constant, meant[:, None])}
        if isinstance(data.docs, TokenBags):
            texts = [frame.iloc[:, 0].fillna("") for frame in (data.train.frame, data.doc_frame)]
            tfidf = TfidfVectorizer(analyzer=search_terms)
            tfidf.fit(pd.concat([texts[0], texts[1][: data.n_known]]))
            asked = tfidf.transform(data.test.frame.iloc[:, 0].fillna(""))
            found["TF-IDF"] = self.score(asked, tfidf.transform(texts[1]))
        if data.oracle is not None:
            found["oracle"] = data.oracle[data.test.order]
        return found

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Of labelled pairs what a ranker's are, gauc by query where one has both labels."""
        if not self.data.labelled:
            return retrieval_report(results[rows], TOP_K)
        labels = self.labels[rows]
        if len(np.unique(labels)) < 2:
            return {}
        return ranking_report(labels, results[rows], self.groups[rows])

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Of labelled pairs."""
        return (self.labels, results) if self.data.labelled else None

    def ranks(self, results: Results) -> Results | None:
        """Of pairs without labels."""
        return None if self.data.labelled else results


def _dense(vectors: Vectors) -> Scores:
    dense: Scores = vectors.toarray() if sparse.issparse(vectors) else vectors
    return dense
