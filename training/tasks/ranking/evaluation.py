"""Evaluation of ranking models that predict one label.

Shapes: B test rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows
from training.golden import request_rows
from training.metrics.ranking import ranking_report
from training.tasks.ranking.data import RankingData
from training.tasks.ranking.target_encoding import fit_target_encodings

MAX_LINEAR_ROWS = 500_000


class RankingEvaluation(Evaluation):
    """Evaluates one label; the results are click probabilities, [B].

    Args:
        data: The data set.
        seed: Seed of the folds that the linear baseline's target encoding is learned in.
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
        """Return the test rows as requests: features by name."""
        return request_rows(self.data.schema, self.frame)

    def results(self, output: ArchiveOutput) -> Results:
        """Return the predictions as an array."""
        return np.array(output.predictions, dtype=np.float32)

    def baselines(self) -> dict[str, Results]:
        """Return the base rate, a linear model and, on synthetic data, the oracle."""
        base_rate = np.average(self.data.targets["train"][:, 0], weights=self.data.weights["train"])
        baselines: dict[str, Results] = {
            "base rate": np.full(len(self.labels), base_rate),
            "linear": self.linear_baseline(LogisticRegression()),
        }
        if self.data.oracle is not None:
            baselines["oracle"] = self.data.oracle[:, 0]
        return baselines

    def linear_baseline(self, model: Any, task: int = 0) -> Results:
        """Fit a linear model to one target and predict the test split.

        It is fitted to half a million rows at most: more take more memory than training itself.

        Args:
            model: A classifier or regressor of scikit-learn.
            task: Position of the target.

        Returns:
            Probabilities or amounts, [B].
        """
        step = -(-len(self.data.train) // MAX_LINEAR_ROWS)
        targets = self.data.targets["train"][::step]
        inputs, encoded = fit_target_encodings(
            self.data.schema, self.data.train[::step], targets[:, 0], self.seed
        )
        pipeline = make_pipeline(StandardScaler(), model)
        name = pipeline.steps[-1][0]
        pipeline.fit(
            np.nan_to_num(encoded),
            targets[:, task],
            **{f"{name}__sample_weight": self.data.weights["train"][::step]},
        )
        test = np.nan_to_num(inputs(self.data.test))
        scores: Results = (
            pipeline.predict_proba(test)[:, 1] if is_classifier(model) else pipeline.predict(test)
        )
        return scores

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute :func:`training.metrics.ranking.ranking_report`; empty without both labels."""
        labels = self.labels[rows]
        if len(np.unique(labels)) < 2:
            return {}
        return ranking_report(
            labels, results[rows], None if self.groups is None else self.groups[rows]
        )

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Return the labels and the click probabilities, both [B]."""
        return self.labels, results
