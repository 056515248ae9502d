"""Train the multi-gate mixture of experts: ``python -m training.train_mmoe``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from sklearn.linear_model import LogisticRegression, TweedieRegressor
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from handlers.models.mmoe import ARCH_VERSION, META_FILE, WEIGHTS_FILE, MMoE
from handlers.models.weights import save_network
from handlers.schema import Matrix
from training import run
from training.bounds import Count, Dropout, EmbeddingDim, Weights, Widths
from training.data import validation
from training.data.sources import DataError
from training.engine.fit import FitConfig, fit, predict
from training.engine.worker import seed_everything
from training.evaluation import ALL, ArchiveOutput, Results, Rows
from training.metrics.curves import save_curves
from training.metrics.ranking import Array, calibration_ratio, ranking_report, spearman, top_share
from training.metrics.tables import metric_table
from training.tasks.ranking.data import (
    RankingConfig,
    RankingData,
    feature_meta,
    golden_predictions,
    load_ranking_data,
)
from training.tasks.ranking.evaluation import RankingEvaluation

TWEEDIE_POWER = 1.5  # between a Poisson's 1 and a gamma's 2: mostly zeros, then amounts
DEFAULT_WEIGHTS = (1.0, 0.3, 0.2)


@dataclass(frozen=True)
class Config(RankingConfig, FitConfig):
    """Train one network for clicks, watch time and sales.

    A target with only 0 and 1 is a binary task; any other is an amount of 0 or more.

    Attributes:
        targets: Columns to predict, separated by commas; the first one must be binary.
        tasks: Their names in an answer, in the same order.
        task_weights: Weights of their losses; for another number of tasks than the default's, by
            default 1 each.
        embedding_dim: Width of an embedding.
        n_experts: Number of experts.
        expert_hidden: Widths of an expert.
        tower_hidden: Widths of a task's tower.
        dropout: Share of hidden units dropped in training.
        single_task: Also train one network for each task alone, and print it beside.
    """

    targets: str = "label,watch_time,gmv"
    tasks: str = "ctr,watch_time,gmv"
    task_weights: Weights = DEFAULT_WEIGHTS
    embedding_dim: EmbeddingDim = 8
    n_experts: Count = 3
    expert_hidden: Widths = (32,)
    tower_hidden: Widths = (16,)
    dropout: Dropout = 0.0
    single_task: bool = True

    @property
    def weights(self) -> tuple[float, ...]:
        """Those of the losses, for as many tasks as there are."""
        n_tasks = len(run.split_names(self.tasks))
        if self.task_weights == DEFAULT_WEIGHTS and n_tasks != len(DEFAULT_WEIGHTS):
            return (1.0,) * n_tasks
        return self.task_weights


class MMoEEvaluation(RankingEvaluation):
    """Results are the expectation of each task, [R, T].

    Args:
        data: The data set.
        seed: Of the folds of the baseline's target encoding.
        tasks: Their names.
    """

    def __init__(self, data: RankingData, seed: int, tasks: Sequence[str]) -> None:
        super().__init__(data, seed)
        self.tasks = tasks
        self.means = [
            0.0 if set(np.unique(column)) <= {0.0, 1.0} else float(column.mean())
            for column in data.targets["train"].T
        ]
        self.primary = f"{tasks[0]}_auc"
        amounts = [task for task, mean in zip(tasks, self.means, strict=True) if mean]
        binary = [task for task in tasks if task not in amounts]
        self.min_ratio = {f"{task}_auc": 0.99 for task in binary}
        # Few rows hold most of an amount, and its rank correlation goes up and down with them.
        self.min_ratio |= {f"{task}_spearman": 0.95 for task in amounts}
        self.max_ratio = {f"{task}_logloss": 1.01 for task in binary}

    def results(self, output: ArchiveOutput) -> Results:
        """The predictions, by task."""
        known = [task["name"] for task in output.meta["tasks"]]
        if missing := [task for task in self.tasks if task not in known]:
            raise DataError(
                f"{output.meta['model_version']} has no task {', '.join(missing)}; "
                f"it has {', '.join(known)}"
            )
        rows = [[row[task] for task in self.tasks] for row in output.predictions]
        return np.array(rows, dtype=np.float32)

    def baselines(self) -> dict[str, Results]:
        """A linear model for each task, and on synthetic data the truth."""
        models = [
            TweedieRegressor(power=TWEEDIE_POWER) if mean else LogisticRegression()
            for mean in self.means
        ]
        columns = [self.linear(model, task) for task, model in enumerate(models)]
        found = {"linear": np.stack(columns, axis=1)}
        if self.data.oracle is not None:
            found["oracle"] = self.data.oracle
        return found

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Metrics of all tasks, as ``<task>_<metric>``."""
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
        """Of a click."""
        return self.labels, results[:, 0]


def evaluation(config: Config, columns: Sequence[str] = ()) -> MMoEEvaluation:
    """What the model is judged on, with further columns to slice by."""
    targets, tasks = run.split_names(config.targets), run.split_names(config.tasks)
    if not len(targets) == len(tasks) == len(config.weights):
        raise DataError(
            f"--targets, --tasks and --task-weights: expected as many of each, got {len(targets)}, "
            f"{len(tasks)} and {len(config.weights)}"
        )
    if len(set(tasks)) < len(tasks):
        raise DataError(f"--tasks {config.tasks}: expected each name once")
    return MMoEEvaluation(load_ranking_data(config, targets, columns), config.seed, tasks)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; returns their folder."""
    test = evaluation(config)
    data, tasks, means = test.data, test.tasks, test.means
    targets = run.split_names(config.targets)
    statistics = validation.check("mmoe", test.train_frame, targets, config)
    network, history = _fit(config, data, means, range(len(tasks)))
    scores = _expected(network, data.test)
    reports = test.reports("mmoe", scores)
    if config.single_task:
        alone = np.hstack(
            [_expected(_fit(config, data, means, [t])[0], data.test) for t in range(len(tasks))]
        )
        reports["single task"] = test.report(alone)
    Console().print(metric_table(reports, "MMoE on the test split"))
    with run.writing_artifacts(
        "mmoe",
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=golden_predictions(
            data,
            lambda matrix: [
                dict(zip(tasks, row, strict=True)) for row in _expected(network, matrix).tolist()
            ],
        ),
        label_column=targets[0],
        tasks=[
            {"name": name, "target": target, "mean": mean}
            for name, target, mean in zip(tasks, targets, means, strict=True)
        ],
        statistics=statistics,
        **feature_meta(data),
    ) as folder:
        save_network(network, folder / WEIGHTS_FILE)
        save_curves(folder, history, data.targets["test"][:, 0], scores[:, 0])
    return config.folder("mmoe")


def _expected(network: MMoE, matrix: Matrix) -> Array:
    """Expected value of each task, float32 [rows, T]."""
    return predict(network, torch.from_numpy(matrix), network.expected).numpy()


def _fit(
    config: Config, data: RankingData, means: Sequence[float], tasks: Sequence[int]
) -> tuple[MMoE, dict[str, list[float]]]:
    """Train one network for the tasks with these indices; a task alone has one expert."""
    seed_everything(config.seed)
    network = MMoE(
        data.schema.cardinalities,
        [means[t] for t in tasks],
        config.embedding_dim,
        config.n_experts if len(tasks) > 1 else 1,
        config.expert_hidden,
        config.tower_hidden,
        config.dropout,
    )

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        losses = [
            config.weights[t] * _task_loss(logits[:, i], targets[:, t], means[t])
            for i, t in enumerate(tasks)
        ]
        return torch.stack(losses).sum()

    return network, fit(network, loss, data.tensors("train"), data.tensors("valid"), config)


def _task_loss(logits: Tensor, targets: Tensor, mean: float) -> Tensor:
    """Cross entropy of a binary task; the Tweedie deviance of an amount, up to a constant.

    Jorgensen, 1987: with the log link, exponential dispersion with variance power p.
    """
    if mean == 0:
        return binary_cross_entropy_with_logits(logits, targets)
    p, amounts = TWEEDIE_POWER, targets / mean
    deviance = ((2 - p) * logits).exp() / (2 - p) - amounts * ((1 - p) * logits).exp() / (1 - p)
    return deviance.mean()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
