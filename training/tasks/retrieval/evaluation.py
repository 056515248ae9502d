"""Evaluation of the two-tower model.

Shapes: B test positives, N items of the catalog, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from training.evaluation import ALL, HIT_RATE_RATIO, ArchiveOutput, Evaluation, Results, Rows
from training.golden import request_rows
from training.metrics.retrieval import Ranks, expected_ranks, retrieval_report
from training.tasks.retrieval.data import RetrievalData, ScoreItems

_CHUNK_ROWS = 256


class RetrievalEvaluation(Evaluation):
    """The results are the ranks of the chosen items among all items, [B]."""

    primary = "hr_at_10"
    min_ratio: Mapping[str, float] = {"hr_at_10": HIT_RATE_RATIO}
    floor = "popularity"
    # Every archive of a run contains both towers.
    handler_config: ClassVar[Mapping[str, str]] = {"tower": "user"}

    def __init__(self, data: RetrievalData) -> None:
        self.data = data
        self.frame, self.data_sha256 = data.test_frame, data.sha256
        self.train_frame = data.train_frame
        self.chance = min(1.0, 10 / len(data.item_ids))

    def rows(self) -> list[Any]:
        """Return the users of the test positives as requests."""
        return request_rows(self.data.user_schema, self.data.test_frame)

    def items(self) -> list[Any]:
        """Return all items as requests."""
        return request_rows(self.data.item_schema, self.data.item_frame)

    def results(self, output: ArchiveOutput) -> Results:
        """Rank by the inner product of user and item vectors."""
        users = np.array(output.predictions, dtype=np.float32)  # [B, D]
        return self.rank(lambda rows: users[rows] @ output.item_vectors.T)

    def rank(self, score: ScoreItems) -> Ranks:
        """Rank the chosen item of each test positive among all items, float64 [B]."""
        targets = self.data.test.items
        parts = [slice(i, i + _CHUNK_ROWS) for i in range(0, len(targets), _CHUNK_ROWS)]
        return np.concatenate([expected_ranks(score(part), targets[part]) for part in parts])

    def baselines(self) -> dict[str, Results]:
        """Return popularity and, on the default data, the oracle."""
        popularity = self.data.counts.astype(np.float64)
        baselines = {
            "popularity": self.rank(
                lambda rows: np.tile(popularity, (len(self.data.test.items[rows]), 1))
            )
        }
        if self.data.oracle is not None:
            baselines["oracle"] = self.rank(self.data.oracle)
        return baselines

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute hit rate, NDCG and MRR."""
        return retrieval_report(results[rows], ks=(10, 50))

    def ranks(self, results: Results) -> Results | None:
        """Return the results, which are ranks."""
        return results
