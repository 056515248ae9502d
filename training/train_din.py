"""Train DIN: ``python -m training.train_din``."""

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

from handlers.models.din import ARCH_VERSION, DIN, META_FILE, WEIGHTS_FILE
from handlers.models.weights import save_network
from handlers.schema import Matrix
from training import run
from training.bounds import Count, Dropout, EmbeddingDim, Widths
from training.data.feature_flags import HistoryFlags
from training.data.sources import DataError
from training.engine.fit import FitConfig, History, fit, predict
from training.engine.worker import seed_everything
from training.metrics.curves import save_curves
from training.metrics.tables import metric_table
from training.tasks.ranking.behavior_world import BEHAVIORS
from training.tasks.ranking.data import RankingConfig, RankingData, load_ranking_data
from training.tasks.ranking.embeddings import EmbeddingFlags
from training.tasks.ranking.evaluation import RankingEvaluation
from training.tasks.ranking.world import World


@dataclass(frozen=True)
class Config(HistoryFlags, RankingConfig, EmbeddingFlags, FitConfig):
    """Train DIN to predict clicks from what the user did before.

    Attributes:
        data_path: A file; a folder with a train, a valid and a test file; a folder or pattern of
            files that are read one after the other; or the s3:// URL of any of these. By default, a
            synthetic world with a known ceiling is generated into data/behaviors.
        label: Column to predict, 0 or 1.
        embedding_dim: Width of an embedding.
        hidden: Widths of the hidden layers of the deep part.
        attention_dim: Width of the hidden layer that weights the items of the history.
        dropout: Share of hidden units dropped in training.
        without_history: Also train the network without the history, to compare with.
    """

    model: ClassVar[str] = "din"
    column_flags: ClassVar[Sequence[str]] = ("features", *HistoryFlags.names())
    world: ClassVar[World] = BEHAVIORS

    data_path: str | None = None
    features: str = "user_id,item_id,item_price"
    categorical: str = "user_id,item_id"
    timestamp: str = "event_time"
    history: str = "history_item_ids"
    label: str = "label"
    embedding_dim: EmbeddingDim = 16
    hidden: Widths = (64, 32)
    attention_dim: Count = 16
    dropout: Dropout = 0.0
    without_history: bool = True


def evaluation(config: Config, columns: Sequence[str] = ()) -> RankingEvaluation:
    """Load the data to evaluate on, with further columns to group results by."""
    return RankingEvaluation(load_ranking_data(config, [config.label], columns), config.seed)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder.

    Raises:
        DataError: If the flags or the data are unusable.
    """
    if len(config.histories) != 1:
        raise DataError(
            "--history: expected the column that lists the user's items, such as history_item_ids, "
            f"got {config.history or 'none'}"
        )
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    network, history = _fit(config, data, config.attention_dim)

    def probabilities(matrix: Matrix) -> Any:
        return torch.sigmoid(predict(network, torch.from_numpy(matrix))).numpy()

    labels, scores = data.targets["test"][:, 0], probabilities(data.test)
    reports = test.reports(config.model, scores)
    if config.without_history:
        other, _ = _fit(config, data, attention_dim=0)
        logits = predict(other, torch.from_numpy(data.test))
        reports["without history"] = test.report(logits.sigmoid().numpy())
    Console().print(metric_table(reports, "DIN on the test split"))
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


def _fit(config: Config, data: RankingData, attention_dim: int) -> tuple[DIN, History]:
    """Train a network; without the history if ``attention_dim`` is 0."""
    seed_everything(config.seed)
    network = DIN(
        data.schema.cardinalities,
        config.embedding_dim,
        config.hidden,
        attention_dim,
        config.dropout,
        **config.input_options(data.schema),
    )
    config.set_pretrained(network.inputs, data.schema)
    base = config.base_network(DIN, WEIGHTS_FILE, ARCH_VERSION) if attention_dim else None
    history = fit(network, _loss, data.tensors("train"), data.tensors("valid"), config, base)
    return network, history


def _loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, targets[:, 0], weights)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
