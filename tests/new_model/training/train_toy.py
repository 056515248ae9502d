"""Train the toy model: ``python -m training.train_toy``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro
from handlers.models.toy import ARCH_VERSION, META_FILE, Toy
from pydantic import Field
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from training import run
from training.metrics.tables import metric_table
from training.tasks.ranking.data import RankingConfig, load_ranking_data
from training.tasks.ranking.evaluation import RankingEvaluation


@dataclass(frozen=True)
class Config(RankingConfig):
    """Train the toy model to predict clicks.

    Attributes:
        label: Column to predict, 0 or 1.
        strength: Inverse of the strength of the regularization.
    """

    model: ClassVar[str] = "toy"
    library: ClassVar[str] = "scikit-learn"

    label: str = "label"
    strength: Annotated[float, Field(ge=0.001, le=1000)] = 1.0


def evaluation(config: Config, columns: Sequence[str] = ()) -> RankingEvaluation:
    """Load the data to evaluate on, with further columns to group results by."""
    return RankingEvaluation(load_ranking_data(config, [config.label], columns), config.seed)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    scaler = StandardScaler().fit(data.train)
    fitted = LogisticRegression(C=config.strength)
    fitted.fit(scaler.transform(data.train), data.targets["train"][:, 0])
    weights = fitted.coef_[0] / scaler.scale_
    toy = Toy(weights.tolist(), float(fitted.intercept_[0] - weights @ scaler.mean_))
    reports = test.reports(config.model, toy(data.test))
    Console().print(metric_table(reports, "The toy model on the test split"))
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=data.golden(lambda matrix: toy(matrix).tolist()),
        libraries=["scikit-learn"],
        label_column=config.label,
        statistics=statistics,
        **data.meta(),
    ) as folder:
        toy.save(folder)
    return config.folder()


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
