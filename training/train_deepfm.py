"""Train DeepFM: ``python -m training.train_deepfm``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from rich.console import Console
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from handlers.models.deepfm import ARCH_VERSION, META_FILE, WEIGHTS_FILE, DeepFM
from handlers.models.weights import save_network
from handlers.schema import Matrix
from training import run
from training.bounds import Dropout, EmbeddingDim, Widths
from training.engine.fit import FitConfig, fit, predict
from training.engine.worker import seed_everything
from training.metrics.curves import save_curves
from training.metrics.tables import metric_table
from training.tasks.ranking.data import RankingConfig, load_ranking_data
from training.tasks.ranking.embeddings import EmbeddingFlags
from training.tasks.ranking.evaluation import RankingEvaluation


@dataclass(frozen=True)
class Config(RankingConfig, EmbeddingFlags, FitConfig):
    """Train DeepFM to predict clicks.

    Attributes:
        label: Column to predict, 0 or 1.
        embedding_dim: Width of an embedding.
        hidden: Widths of the hidden layers of the deep part.
        dropout: Share of hidden units dropped in training.
    """

    model: ClassVar[str] = "deepfm"

    label: str = "label"
    embedding_dim: EmbeddingDim = 16
    hidden: Widths = (64, 32)
    dropout: Dropout = 0.0


def evaluation(config: Config, columns: Sequence[str] = ()) -> RankingEvaluation:
    """Load the data to evaluate on, with further columns to group results by."""
    return RankingEvaluation(load_ranking_data(config, [config.label], columns), config.seed)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    seed_everything(config.seed)
    network = DeepFM(
        data.schema.cardinalities,
        config.embedding_dim,
        config.hidden,
        config.dropout,
        **config.input_options(data.schema),
    )
    config.set_pretrained(network.inputs, data.schema)
    base = config.base_network(DeepFM, WEIGHTS_FILE, ARCH_VERSION)
    history = fit(network, _loss, data.tensors("train"), data.tensors("valid"), config, base)

    def probabilities(matrix: Matrix) -> Any:
        return torch.sigmoid(predict(network, torch.from_numpy(matrix))).numpy()

    labels, scores = data.targets["test"][:, 0], probabilities(data.test)
    reports = test.reports(config.model, scores)
    Console().print(metric_table(reports, "DeepFM on the test split"))
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=data.golden(lambda matrix: probabilities(matrix).tolist()),
        label_column=config.label,
        statistics=statistics,
        **data.meta(),
    ) as folder:
        save_network(network, folder / WEIGHTS_FILE)
        save_curves(folder, history, labels, scores)
    return config.folder()


def _loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, targets[:, 0], weights)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
