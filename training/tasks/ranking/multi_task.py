"""Losses and evaluation of ranking models that predict several targets.

A task whose target holds only 0 and 1 is binary. Any other target is an amount of 0 or more, such
as watch time: zero for most rows, then spread over orders of magnitude.

Shapes: B rows, T tasks.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression, TweedieRegressor
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from training.data.sources import DataError
from training.evaluation import ALL, ArchiveOutput, Results, Rows
from training.metrics.ranking import calibration_ratio, ranking_report, spearman, top_share
from training.tasks.ranking.data import RankingData
from training.tasks.ranking.evaluation import RankingEvaluation

TWEEDIE_POWER = 1.5  # variance power between Poisson (1) and gamma (2): zeros and amounts


class MultiTaskEvaluation(RankingEvaluation):
    """Evaluates several targets; the results are the expectations of each task, [B, T].

    Args:
        data: The data set.
        seed: Seed of the folds that the linear baseline's target encoding is learned in.
        tasks: Names of the tasks, in the order of the targets; the first one must be binary.

    Attributes:
        means: Weighted mean of each amount in the training split; 0 for a binary task.
    """

    def __init__(self, data: RankingData, seed: int, tasks: Sequence[str]) -> None:
        super().__init__(data, seed)
        self.tasks = tasks
        self.means = [
            0.0
            if set(np.unique(column)) <= {0.0, 1.0}
            else float(np.average(column, weights=data.weights["train"]))
            for column in data.targets["train"].T
        ]
        self.primary = f"{tasks[0]}_auc"
        amounts = [task for task, mean in zip(tasks, self.means, strict=True) if mean]
        binary = [task for task in tasks if task not in amounts]
        self.min_ratio = {f"{task}_auc": 0.99 for task in binary}
        # A few rows hold most of an amount and move its rank correlation.
        self.min_ratio |= {f"{task}_spearman": 0.95 for task in amounts}
        self.max_ratio = {f"{task}_logloss": 1.01 for task in binary}

    def results(self, output: ArchiveOutput) -> Results:
        """Return the predictions as an array.

        Raises:
            DataError: If the archive lacks a task.
        """
        known = [task["name"] for task in output.meta["tasks"]]
        if missing := [task for task in self.tasks if task not in known]:
            raise DataError(
                f"{output.meta['model_version']} has no task {', '.join(missing)}; "
                f"it has {', '.join(known)}"
            )
        rows = [[row[task] for task in self.tasks] for row in output.predictions]
        return np.array(rows, dtype=np.float32)

    def baselines(self) -> dict[str, Results]:
        """Return a linear model for each task and, on synthetic data, the oracle."""
        models = [
            TweedieRegressor(power=TWEEDIE_POWER) if mean else LogisticRegression()
            for mean in self.means
        ]
        columns = [self.linear_baseline(model, task) for task, model in enumerate(models)]
        baselines = {"linear": np.stack(columns, axis=1)}
        if self.data.oracle is not None:
            baselines["oracle"] = self.data.oracle
        return baselines

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute the metrics of all tasks, named ``<task>_<metric>``."""
        report: dict[str, float] = {}
        for t, (task, mean) in enumerate(zip(self.tasks, self.means, strict=True)):
            actual, score = self.data.targets["test"][rows, t], results[rows, t]
            if len(np.unique(actual)) < 2:
                continue
            if mean == 0:
                groups = None if self.groups is None else self.groups[rows]
                metrics = ranking_report(actual, score, groups)
            else:
                metrics = {
                    "spearman": spearman(actual, score),
                    "top_share": top_share(actual, score),
                    "calibration_ratio": calibration_ratio(actual, score),
                }
            report |= {f"{task}_{name}": value for name, value in metrics.items()}
        return report

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Return the labels and the probabilities of the first task, both [B]."""
        return self.labels, results[:, 0]


def task_loss(logits: Tensor, targets: Tensor, weights: Tensor, mean: float) -> Tensor:
    """Compute the cross entropy of a binary task, or the Tweedie deviance of an amount.

    The deviance (Jorgensen, 1987) has a log link and leaves out a constant.

    Args:
        logits: Logits of a label, or logs of amounts divided by ``mean``, float32 [B].
        targets: Labels or amounts, float32 [B].
        weights: Weights of the rows, float32 [B].
        mean: Mean of the amounts; 0 for a binary task.

    Returns:
        Weighted mean loss, float32 [].
    """
    if mean == 0:
        return binary_cross_entropy_with_logits(logits, targets, weights)
    p, amounts = TWEEDIE_POWER, targets / mean
    deviance = ((2 - p) * logits).exp() / (2 - p) - amounts * ((1 - p) * logits).exp() / (1 - p)
    return (weights * deviance).mean()
