"""What the two-tower model is judged on."""

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
    """Results are the ranks of the chosen items among all, [R], one for each choice."""

    primary = "hr_at_10"
    min_ratio: Mapping[str, float] = {"hr_at_10": HIT_RATE_RATIO}
    floor = "popularity"
    # Every archive of a run carries both towers.
    handler_config: ClassVar[Mapping[str, str]] = {"tower": "user"}

    def __init__(self, data: RetrievalData) -> None:
        self.data = data
        self.frame, self.data_sha256 = data.test_frame, data.sha256
        self.train_frame = data.train_frame
        self.chance = min(1.0, 10 / len(data.item_ids))

    def rows(self) -> list[Any]:
        """The users' features."""
        return request_rows(self.data.user_schema, self.data.test_frame)

    def items(self) -> list[Any]:
        """The items' features."""
        return request_rows(self.data.item_schema, self.data.item_frame)

    def results(self, output: ArchiveOutput) -> Results:
        """Ranks by inner product."""
        users = np.array(output.predictions, dtype=np.float32)
        return self.rank(lambda rows: users[rows] @ output.item_vectors.T)

    def rank(self, score: ScoreItems) -> Ranks:
        """Ranks of the chosen items by the scores of all."""
        targets = self.data.test.items
        parts = [slice(i, i + _CHUNK_ROWS) for i in range(0, len(targets), _CHUNK_ROWS)]
        return np.concatenate([expected_ranks(score(part), targets[part]) for part in parts])

    def baselines(self) -> dict[str, Results]:
        """Popularity and, on the default data, the truth."""
        popularity = self.data.counts.astype(np.float64)
        found = {
            "popularity": self.rank(
                lambda rows: np.tile(popularity, (len(self.data.test.items[rows]), 1))
            )
        }
        if self.data.oracle is not None:
            found["oracle"] = self.rank(self.data.oracle)
        return found

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Hit rate, NDCG and MRR."""
        return retrieval_report(results[rows], ks=(10, 50))

    def ranks(self, results: Results) -> Results | None:
        """The results themselves."""
        return results
