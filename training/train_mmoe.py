"""Train the multi-gate mixture of experts: ``python -m training.train_mmoe``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from handlers.models.mmoe import ARCH_VERSION, META_FILE, WEIGHTS_FILE, MMoE
from handlers.models.weights import save_network
from handlers.schema import Matrix
from training import run
from training.bounds import Count, Dropout, EmbeddingDim, Weights, Widths
from training.data.feature_flags import split_names
from training.data.sources import DataError
from training.engine.fit import FitConfig, fit, predict
from training.engine.worker import TrainingError, seed_everything
from training.metrics.curves import save_curves
from training.metrics.ranking import Array
from training.metrics.tables import metric_table
from training.tasks.ranking.data import RankingConfig, RankingData, load_ranking_data
from training.tasks.ranking.embeddings import EmbeddingFlags
from training.tasks.ranking.multi_task import MultiTaskEvaluation, task_loss

DEFAULT_WEIGHTS = (1.0, 0.3, 0.2)


@dataclass(frozen=True)
class Config(RankingConfig, EmbeddingFlags, FitConfig):
    """Train one network for clicks, watch time and sales.

    A target that holds only 0 and 1 is a binary task; any other is an amount of 0 or more.

    Attributes:
        targets: Columns to predict, separated by commas; the first one must be binary.
        tasks: Names of the targets in a prediction, in the same order.
        task_weights: Weights of the losses. If the number of tasks is not that of the default
            weights, the default is 1 each.
        embedding_dim: Width of an embedding.
        n_experts: Number of experts.
        expert_hidden: Widths of the hidden layers of an expert.
        tower_hidden: Widths of the hidden layers of a task's tower.
        dropout: Share of hidden units dropped in training.
        single_task: Also train a network for each task alone, to compare with.
    """

    model: ClassVar[str] = "mmoe"

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
        """Weight of each task's loss, T."""
        n_tasks = len(split_names(self.tasks))
        if self.task_weights == DEFAULT_WEIGHTS and n_tasks != len(DEFAULT_WEIGHTS):
            return (1.0,) * n_tasks
        return self.task_weights


def evaluation(config: Config, columns: Sequence[str] = ()) -> MultiTaskEvaluation:
    """Load the data to evaluate on, with further columns to group results by.

    Raises:
        DataError: If the flags or the data are unusable.
    """
    targets, tasks = split_names(config.targets), split_names(config.tasks)
    if not len(targets) == len(tasks) == len(config.weights):
        raise DataError(
            "--targets, --tasks and --task-weights: expected the same number of each, got "
            f"{len(targets)}, {len(tasks)} and {len(config.weights)}"
        )
    if len(set(tasks)) < len(tasks):
        raise DataError(f"--tasks {config.tasks}: expected each name once")
    return MultiTaskEvaluation(load_ranking_data(config, targets, columns), config.seed, tasks)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    data, tasks, means = test.data, test.tasks, test.means
    targets = split_names(config.targets)
    statistics = run.check_data(test, targets, config)
    network, history = _fit(config, data, means, range(len(tasks)), _base(config, tasks, means))
    scores = _expected(network, data.test)
    reports = test.reports(config.model, scores)
    if config.single_task:
        single = np.hstack(
            [_expected(_fit(config, data, means, [t])[0], data.test) for t in range(len(tasks))]
        )
        reports["single task"] = test.report(single)
    Console().print(metric_table(reports, "MMoE on the test split"))
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=data.golden(
            lambda matrix: [
                dict(zip(tasks, row, strict=True)) for row in _expected(network, matrix).tolist()
            ]
        ),
        label_column=targets[0],
        tasks=[
            {"name": name, "target": target, "mean": mean}
            for name, target, mean in zip(tasks, targets, means, strict=True)
        ],
        statistics=statistics,
        **data.meta(),
    ) as folder:
        save_network(network, folder / WEIGHTS_FILE)
        save_curves(folder, history, data.targets["test"][:, 0], scores[:, 0])
    return config.folder()


def _expected(network: MMoE, matrix: Matrix) -> Array:
    """Predict the expectation of each task, float32 [B, T]."""
    return predict(network, torch.from_numpy(matrix), network.expected).numpy()


def _fit(
    config: Config,
    data: RankingData,
    means: Sequence[float],
    tasks: Sequence[int],
    base: MMoE | None = None,
) -> tuple[MMoE, dict[str, list[float]]]:
    """Train a network for the tasks at these positions; a single task gets one expert."""
    seed_everything(config.seed)
    network = MMoE(
        data.schema.cardinalities,
        [means[t] for t in tasks],
        config.embedding_dim,
        config.n_experts if len(tasks) > 1 else 1,
        config.expert_hidden,
        config.tower_hidden,
        config.dropout,
        **config.input_options(data.schema),
    )
    config.set_pretrained(network.inputs, data.schema)

    def loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        losses = [
            config.weights[t] * task_loss(logits[:, i], targets[:, t], weights, means[t])
            for i, t in enumerate(tasks)
        ]
        return torch.stack(losses).sum()

    return network, fit(network, loss, data.tensors("train"), data.tensors("valid"), config, base)


def _base(config: Config, tasks: Sequence[str], means: Sequence[float]) -> MMoE | None:
    """Load the network to start from.

    Raises:
        TrainingError: If it has other tasks.
    """
    base = config.base()
    if base is None:
        return None
    before = [(task["name"], task["mean"] > 0) for task in base.meta["tasks"]]
    if before != [(task, mean > 0) for task, mean in zip(tasks, means, strict=True)]:
        listed = ", ".join(f"{name} ({'amount' if m else '0 or 1'})" for name, m in before)
        raise TrainingError(f"--init-from: expected the same --tasks and targets: {listed}")
    return base.network(MMoE, WEIGHTS_FILE, ARCH_VERSION)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
