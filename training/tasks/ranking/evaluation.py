"""Evaluation of ranking models that predict one label.

Shapes: B test rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows
from training.golden import request_rows
from training.metrics.ranking import list_report, ranking_report
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
        self.frame, self.data_sha256 = data.test_frame, data.sha256
        self.groups = data.groups.get("test")
        self.train_frame = data.train_frame
        self.labels = data.targets["test"][:, 0]

    def rows(self) -> list[Any]:
        """Return the test rows as requests: features by name."""
        return request_rows(self.data.schema, self.frame)

    def results(self, output: ArchiveOutput) -> Results:
        """Return the predictions as an array, scores of a rank objective through a sigmoid.

        These are no probabilities, but a version that ranks can be judged next to one that does
        not by what both have: their order.
        """
        predictions = np.array(output.predictions, dtype=np.float32)
        return expit(predictions) if output.meta.get("prediction") == "score" else predictions

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
        weights = self.data.weights["train"][::step]
        inputs, encoded = fit_target_encodings(
            self.data.schema, self.data.train[::step], targets[:, 0], weights, self.seed
        )
        pipeline = make_pipeline(StandardScaler(), model)
        name = pipeline.steps[-1][0]
        pipeline.fit(
            np.nan_to_num(encoded),
            self.learned(targets[:, task]),
            **{f"{name}__sample_weight": weights},
        )
        test = np.nan_to_num(inputs(self.data.test))
        scores: Results = (
            pipeline.predict_proba(test)[:, 1] if is_classifier(model) else pipeline.predict(test)
        )
        return scores

    def learned(self, targets: Results) -> Results:
        """Return what the linear baseline learns of a target, [B] -> [B]."""
        return targets

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


class ListEvaluation(RankingEvaluation):
    """Evaluates the order within groups; the results are scores, higher first, [B].

    Scores are no probabilities, so there are no logloss and no calibration.
    """

    primary = "ndcg_at_10"
    min_ratio: Mapping[str, float] = {"ndcg_at_10": 0.99}
    max_ratio: Mapping[str, float] = {}

    def __init__(self, data: RankingData, seed: int) -> None:
        super().__init__(data, seed)
        self.lists = data.groups["test"]
        self.chance = self.report(np.zeros(len(self.labels))).get(self.primary, 0.0)

    def results(self, output: ArchiveOutput) -> Results:
        """Return the predictions as an array."""
        return np.array(output.predictions, dtype=np.float32)

    def learned(self, targets: Results) -> Results:
        """Return whether a row is relevant at all, [B] -> [B]."""
        return targets > 0

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute :func:`training.metrics.ranking.list_report`; empty without both labels.

        A group that the rows repeat, as a bootstrap does, counts as several.
        """
        labels, groups = self.labels[rows], self.lists[rows]
        if len(np.unique(labels > 0)) < 2:
            return {}
        if not isinstance(rows, slice):
            copy = pd.Series(rows).groupby(rows).cumcount().to_numpy()
            groups = pd.MultiIndex.from_arrays([groups, copy]).factorize()[0]
        return list_report(labels, results[rows], groups)

    def probabilities(self, results: Results) -> None:
        """Return None: there are none."""
