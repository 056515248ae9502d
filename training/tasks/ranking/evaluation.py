"""What a ranking model is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from handlers.models.xgb import TreeInputs
from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows
from training.golden import request_rows
from training.metrics.ranking import ranking_report
from training.tasks.ranking.data import RankingData
from training.tasks.ranking.target_encoding import fit_target_encodings


class RankingEvaluation(Evaluation):
    """Results are click probabilities, [R], one for each row.

    Args:
        data: The data set.
        seed: Of the folds of the baseline's target encoding.
    """

    primary = "auc"
    chance = 0.5
    min_ratio: Mapping[str, float] = {"auc": 0.99}
    max_ratio: Mapping[str, float] = {"logloss": 1.01}
    floor = "linear"

    def __init__(self, data: RankingData, seed: int) -> None:
        self.data, self.seed = data, seed
        self.frame, self.groups, self.data_sha256 = data.test_frame, data.groups, data.sha256
        self.train_frame = data.train_frame
        self.labels = data.targets["test"][:, 0]

    def rows(self) -> list[Any]:
        """Features by name."""
        return request_rows(self.data.schema, self.frame)

    def results(self, output: ArchiveOutput) -> Results:
        """The predictions."""
        return np.array(output.predictions, dtype=np.float32)

    def baselines(self) -> dict[str, Results]:
        """The base rate, a linear model, and on synthetic data the truth."""
        base_rate = self.data.targets["train"][:, 0].mean()
        found: dict[str, Results] = {
            "base rate": np.full(len(self.labels), base_rate),
            "linear": self.linear(LogisticRegression()),
        }
        if self.data.oracle is not None:
            found["oracle"] = self.data.oracle[:, 0]
        return found

    def linear(self, model: Any, task: int = 0) -> Results:
        """Predictions of a linear model of scikit-learn for one of the targets, [R]."""
        targets = self.data.targets["train"]
        encodings, encoded = fit_target_encodings(
            self.data.schema, self.data.train, targets[:, 0], self.seed
        )
        pipeline = make_pipeline(StandardScaler(), model)
        pipeline.fit(np.nan_to_num(encoded), targets[:, task])
        test = np.nan_to_num(TreeInputs(encodings)(self.data.test))
        scores: Results = (
            pipeline.predict_proba(test)[:, 1] if is_classifier(model) else pipeline.predict(test)
        )
        return scores

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """As :func:`training.metrics.ranking.ranking_report`."""
        labels = self.labels[rows]
        if len(np.unique(labels)) < 2:
            return {}
        return ranking_report(
            labels, results[rows], None if self.groups is None else self.groups[rows]
        )

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Of a click."""
        return self.labels, results
