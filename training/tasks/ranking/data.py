"""What the ranking models share: their data, their baselines, their report, their artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from handlers.schema import FeatureSchema, Matrix
from training.data.features import DEFAULT_FEATURES, computable_crosses, fit_schema, to_matrix
from training.data.files import read_parquet
from training.data.sources import DataError
from training.data.splits import Splits, label_problems, load_splits
from training.golden import Golden, golden_matrix, golden_rows
from training.run import RunConfig, split_names
from training.tasks.ranking.world import generate_impressions

DEFAULT_DATA = Path("data/impressions")

Targets = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankingConfig(RunConfig):
    """Where a ranking model's data comes from.

    Attributes:
        data_path: A file, a folder with a train, valid and test file, a folder or pattern of files
            that follow each other, or the s3:// URL of one of these; when left out, a synthetic
            world with a known ceiling is generated into data/impressions.
        features: Input columns in the model's order, separated by commas.
        categorical: Those of them that are ids or strings, separated by commas.
        group: Column whose values are the lists that GAUC averages over, such as user_id.
        time_column: Split one file by this column's order, instead of by a seeded shuffle.
    """

    column_flags: ClassVar[Sequence[str]] = ("features", "categorical")

    data_path: str | None = None
    features: str = ",".join(DEFAULT_FEATURES)
    categorical: str = ""
    group: str = ""
    time_column: str = ""


@dataclass(frozen=True)
class RankingData:
    """A ranking data set, encoded.

    Attributes:
        schema: Learned from the training split.
        train: Matrix, float32 [rows, C].
        valid: Matrix, float32 [rows, C].
        test: Matrix, float32 [rows, C].
        targets: By split, float32 [rows, T].
        train_frame: The training split before it was encoded.
        test_frame: The test split before it was encoded, rows of features and other columns.
        groups: Of the test split, [rows]; None without a group column.
        oracle: The expectation of each target on the test split, [rows, T]; None unless the data
            is synthetic.
        golden: Raw request rows.
        sha256: Tells the data from other data.
    """

    schema: FeatureSchema
    train: Matrix
    valid: Matrix
    test: Matrix
    targets: dict[str, Targets]
    train_frame: pd.DataFrame
    test_frame: pd.DataFrame
    groups: npt.NDArray[Any] | None
    oracle: Targets | None
    golden: list[dict[str, Any]]
    sha256: str

    def tensors(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix float32 [rows, C] and targets float32 [rows, T] of a split."""
        return torch.from_numpy(getattr(self, split)), torch.from_numpy(self.targets[split])


def load_ranking_data(
    config: RankingConfig, targets: Sequence[str], columns: Sequence[str] = ()
) -> RankingData:
    """Read, check, split and encode the data.

    Args:
        config: Names the data and its columns.
        targets: Columns to predict. The first one is a label, as are others with only 0 and 1; the
            rest are amounts.
        columns: Further ones that the test frame is to have.

    Raises:
        DataError: If the data cannot be trained on; says where and why.
    """
    features, categorical = split_names(config.features), split_names(config.categorical)
    if stray := [name for name in categorical if name not in features]:
        raise DataError(f"--categorical {','.join(stray)}: expected names of --features")
    if stray := [name for name in targets if name in features]:
        raise DataError(f"{','.join(stray)}: is both a feature and a target")
    if config.uses_default_data:
        if not DEFAULT_DATA.exists():
            logger.info("no --data-path: generating a synthetic world in %s", DEFAULT_DATA)
        generate_impressions(DEFAULT_DATA)
    data = config.data(DEFAULT_DATA)
    crosses = computable_crosses(features)
    numeric = [name for name in features if name not in {*categorical, *crosses}]
    further = [name for name in (*columns, config.group) if name not in {"", *features, *targets}]

    def check(splits: Splits) -> list[str]:
        train = splits.train
        amounts = [t for t in targets[1:] if t not in train or not train[t].isin((0, 1)).all()]
        return label_problems(splits, [t for t in targets if t not in amounts], amounts)

    splits = load_splits(
        data,
        [*numeric, *targets],
        [*categorical, *further],
        crosses,
        seed=config.seed,
        time_column=config.time_column or None,
        check=check,
    )
    if config.group and config.group not in splits.test:
        raise DataError(
            f"--group {config.group}: expected a column of the data, got a product of features"
        )
    schema = fit_schema(splits.train, features, categorical)
    return RankingData(
        schema=schema,
        train=to_matrix(schema, splits.train),
        valid=to_matrix(schema, splits.valid),
        test=to_matrix(schema, splits.test),
        targets={
            name: np.array(frame[list(targets)], dtype=np.float32) for name, frame in splits.items()
        },
        train_frame=splits.train,
        test_frame=splits.test,
        groups=splits.test[config.group].to_numpy() if config.group else None,
        oracle=_oracle(DEFAULT_DATA, targets) if config.uses_default_data else None,
        golden=golden_rows(schema, splits.test),
        sha256=data.sha256(*splits),
    )


def _oracle(folder: Path, targets: Sequence[str]) -> Targets:
    truth = read_parquet(folder / "test_truth.parquet")
    return truth[list(targets)].to_numpy(np.float32)


def feature_meta(data: RankingData) -> dict[str, Any]:
    """What the meta file of a ranking model says of its data."""
    return {
        "feature_columns": list(data.schema.names),
        "feature_count": len(data.schema.names),
        "features": data.schema.to_json(),
        "vocabularies": data.schema.vocabularies(),
        "data_sha256": data.sha256,
    }


def golden_predictions(data: RankingData, predict: Callable[[Matrix], Sequence[Any]]) -> Golden:
    """The golden rows with the training code's own predictions.

    Args:
        data: The data set.
        predict: Predictions as JSON for a matrix, float32 [B, C].
    """
    return Golden(data.golden, predict(golden_matrix(data.schema, data.golden)))
