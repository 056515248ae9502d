"""What the ranking models share: their data, their baselines, their report, their artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.base import is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from handlers.schema import FeatureSchema, Matrix
from handlers.tree_inputs import TreeInputs
from training.evaluation import ALL, Answers, Evaluation, Results, Rows
from training.features import DEFAULT_FEATURES, computable_crosses, fit_schema, to_matrix
from training.files import read_parquet
from training.metrics import ranking_report
from training.runs import Golden, RunConfig, names
from training.sources import DataError, Splits, label_problems, load_splits
from training.synthetic import generate_impressions
from training.target_encoding import fit_target_encodings

DEFAULT_DATA = Path("data/impressions")
GOLDEN_ROWS = 32
UNKNOWN_TOKEN = "a token that no vocabulary holds"

Targets = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankerConfig(RunConfig):
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
class Dataset:
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


def load(config: RankerConfig, targets: Sequence[str], columns: Sequence[str] = ()) -> Dataset:
    """Read, check, split and encode the data.

    Args:
        config: Names the data and its columns.
        targets: Columns to predict. The first one is a label, as are others with only 0 and 1; the
            rest are amounts.
        columns: Further ones that the test frame is to have.

    Raises:
        DataError: If the data cannot be trained on; says where and why.
    """
    features, categorical = names(config.features), names(config.categorical)
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
    return Dataset(
        schema=schema,
        train=to_matrix(schema, splits.train),
        valid=to_matrix(schema, splits.valid),
        test=to_matrix(schema, splits.test),
        targets={
            name: np.array(frame[list(targets)], dtype=np.float32)
            for name, frame in vars(splits).items()
        },
        train_frame=splits.train,
        test_frame=splits.test,
        groups=splits.test[config.group].to_numpy() if config.group else None,
        oracle=_oracle(DEFAULT_DATA, targets) if config.uses_default_data else None,
        golden=golden_rows(schema, splits.test),
        sha256=data.sha256(*vars(splits).values()),
    )


def _oracle(folder: Path, targets: Sequence[str]) -> Targets:
    truth = read_parquet(folder / "test_truth.parquet")
    return truth[list(targets)].to_numpy(np.float32)


def golden_rows(schema: FeatureSchema, test: pd.DataFrame) -> list[dict[str, Any]]:
    """Raw request rows for the archive to prove itself on.

    The first rows of the test split; every fourth one lacks a feature, and one has tokens that no
    vocabulary holds.
    """
    present = [name for name in schema.names if name in test]
    rows = request_rows(schema, test.head(GOLDEN_ROWS))
    for i, row in enumerate(rows[3::4]):
        row.pop(present[i % len(present)], None)
    rows[0] |= {f.name: UNKNOWN_TOKEN for f in schema.features if f.kind == "category"}
    return rows


def request_rows(schema: FeatureSchema, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a data frame as callers send them, without the missing cells."""
    present = frame[[name for name in schema.names if name in frame]].copy()
    for name in present.select_dtypes(np.float32):
        # Through text, so that a row says 0.1 and not 0.10000000149011612.
        present[name] = present[name].to_numpy().astype(str).astype(np.float64)
    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in present.to_dict("records")
    ]


def golden_matrix(schema: FeatureSchema, rows: Sequence[Mapping[str, Any]]) -> Matrix:
    """Encode golden rows the way that training encodes its data, float32 [rows, C]."""
    frame = pd.DataFrame(rows)
    numbers = [f.name for f in schema.features if f.kind == "number" and f.name in frame]
    return to_matrix(schema, frame.astype(dict.fromkeys(numbers, np.float64)))


class RankerEvaluation(Evaluation):
    """Results are click probabilities, [R], one for each row.

    Args:
        data: The data set.
        seed: Of the folds of the baseline's target encoding.
    """

    primary = "auc"
    chance = 0.5
    min_ratio: Mapping[str, float] = {"auc": 0.99}
    max_ratio: Mapping[str, float] = {"logloss": 1.01}
    floor = "linear"

    def __init__(self, data: Dataset, seed: int) -> None:
        self.data, self.seed = data, seed
        self.frame, self.groups, self.data_sha256 = data.test_frame, data.groups, data.sha256
        self.train_frame = data.train_frame
        self.labels = data.targets["test"][:, 0]

    def rows(self) -> list[Any]:
        """Features by name."""
        return request_rows(self.data.schema, self.frame)

    def results(self, answers: Answers) -> Results:
        """The predictions."""
        return np.array(answers.predictions, dtype=np.float32)

    def baselines(self) -> dict[str, Results]:
        """The base rate, a linear model, and on synthetic data the truth."""
        base_rate = self.data.targets["train"][:, 0].mean()
        found: dict[str, Results] = {
            "base rate": np.full(len(self.labels), base_rate),
            "linear": self.linear(LogisticRegression()),
        }
        if self.data.oracle is not None:
            found["oracle"] = self.data.oracle[:, 0]
        return found

    def linear(self, model: Any, task: int = 0) -> Results:
        """Predictions of a linear model of scikit-learn for one of the targets, [R]."""
        targets = self.data.targets["train"]
        encodings, encoded = fit_target_encodings(
            self.data.schema, self.data.train, targets[:, 0], self.seed
        )
        pipeline = make_pipeline(StandardScaler(), model)
        pipeline.fit(np.nan_to_num(encoded), targets[:, task])
        test = np.nan_to_num(TreeInputs(encodings)(self.data.test))
        scores: Results = (
            pipeline.predict_proba(test)[:, 1] if is_classifier(model) else pipeline.predict(test)
        )
        return scores

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """As :func:`training.metrics.ranking_report`."""
        labels = self.labels[rows]
        if len(np.unique(labels)) < 2:
            return {}
        return ranking_report(
            labels, results[rows], None if self.groups is None else self.groups[rows]
        )

    def probabilities(self, results: Results) -> tuple[Results, Results] | None:
        """Of a click."""
        return self.labels, results


def feature_meta(data: Dataset) -> dict[str, Any]:
    """What the meta file of a ranking model says of its data."""
    return {
        "feature_columns": list(data.schema.names),
        "feature_count": len(data.schema.names),
        "features": data.schema.to_json(),
        "vocabularies": data.schema.vocabularies(),
        "data_sha256": data.sha256,
    }


def golden(data: Dataset, predict: Callable[[Matrix], Sequence[Any]]) -> Golden:
    """The golden rows with the training code's own predictions.

    Args:
        data: The data set.
        predict: Predictions as JSON for a matrix, float32 [B, C].
    """
    return Golden(data.golden, predict(golden_matrix(data.schema, data.golden)))
