"""The training runs of the quality report, their flags and their bars."""

from __future__ import annotations

import math
from dataclasses import dataclass

from archive import catalog
from bench.real_data import (
    ADULT,
    ADULT_CATEGORIES,
    ADULT_FEATURES,
    BANKING77,
    FACEBOOK,
    ML100K,
    ML100K_FEATURES,
    ML100K_IDS,
    SEPARATOR,
    DataSet,
)


@dataclass(frozen=True)
class Bar:
    """The range that a metric has to reach.

    Attributes:
        metric: Name of the metric in metrics.json.
        low: Minimum.
        high: Maximum.
        twin: Another report of the same run.
        margin: How much better than the metric the twin's may be.
        known: Published or independently measured value.
    """

    metric: str
    low: float = 0.0
    high: float = math.inf
    twin: str = ""
    margin: float = 0.003
    known: float | None = None


@dataclass(frozen=True)
class Run:
    """A training run and its bars.

    Attributes:
        model: Name of the model that the catalog lists for the run.
        bars: One or more bars.
        data: Public data set; None for the model's default data.
        flags: Flags of the training script that differ from the defaults.
    """

    model: str
    bars: tuple[Bar, ...]
    data: DataSet | None = None
    flags: tuple[str, ...] = ()

    @property
    def data_name(self) -> str:
        """Name of the data in the table."""
        return self.data.name if self.data else "default"


CALIBRATED = Bar("calibration_ratio", 0.98, 1.02)
RATINGS = ("--features", ",".join(ML100K_FEATURES), "--categorical", ",".join(ML100K_IDS))
# The same features, with the genres in one column.
LISTED_RATINGS = (
    *("--features", ",".join((*ML100K_IDS, "age", "year")), "--categorical", ",".join(ML100K_IDS)),
    *("--multi", f"genres:{SEPARATOR}", "--pooling", "sum"),
)
TUNED = ("--lr", "6e-3", "--embedding-decay", "0.3", "--dropout", "0.2")

REAL_RUNS = (
    Run(
        "xgb",
        (Bar("auc", 0.772, known=0.774), CALIBRATED),
        ML100K,
        (*RATINGS, "--eta", "0.05", "--max-depth", "6", "--min-child-weight", "20"),
    ),
    Run(
        "deepfm",
        (Bar("auc", 0.78, known=0.781), CALIBRATED),
        ML100K,
        (*RATINGS, *TUNED),
    ),
    # With 18 columns of 0 or 1 for the genres, seed 0 reaches .7922.
    Run("deepfm", (Bar("auc", 0.7912, known=0.7922),), ML100K, (*LISTED_RATINGS, *TUNED)),
    Run(
        "din",
        (Bar("auc", 0.7, twin="without history", margin=0.0),),
        ML100K,
        (
            *LISTED_RATINGS,
            *TUNED,
            *("--history", f"history_item_ids:{SEPARATOR}", "--timestamp", "timestamp"),
            *("--time-column", "timestamp"),
        ),
    ),
    Run(
        "youtube_dnn",
        (Bar("hr_at_10", 0.20, known=0.208), Bar("ndcg_at_10", 0.11, known=0.112)),
        ML100K,
        (
            *("--user-features", "age,gender,occupation", "--categorical", "gender,occupation"),
            *("--time-column", "timestamp", "--exclude-history"),
        ),
    ),
    Run(
        "mmoe",
        (
            Bar("income_auc", 0.915, twin="single task", known=0.9152),
            Bar("never_married_auc", twin="single task"),
        ),
        ADULT,
        (
            *("--features", ",".join(ADULT_FEATURES), "--categorical", ",".join(ADULT_CATEGORIES)),
            *("--targets", "income,never_married", "--tasks", "income,never_married"),
            *("--task-weights", "1", "1", "--batch-size", "512", "--epochs", "12"),
            *("--lr", "4e-3", "--embedding-decay", "1", "--dropout", "0.2"),
        ),
    ),
    Run("dssm", (Bar("hr_at_1", 0.88, known=0.88),), BANKING77, ("--text",)),
    Run(
        "graph_recall", (Bar("hadamard_auc", 0.985, known=0.99),), FACEBOOK, ("--test-share", "0.5")
    ),
)


def default_runs() -> list[Run]:
    """Return a run on the default data for each training run of the catalog."""
    models = [catalog.get(name) for name in catalog.model_names()]
    return [
        Run(model.name, tuple(Bar(metric, low) for metric, low in model.card.bars.items()))
        for model in models
        if model.has_own_run
    ]
