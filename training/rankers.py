"""What the ranking models share: their data, their baselines, their report, their artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from handlers.schema import FeatureSchema, Matrix
from handlers.tree_inputs import TreeInputs
from training.features import DEFAULT_FEATURES, computable_crosses, fit_schema, to_matrix
from training.metrics import ranking_report
from training.runs import Golden, RunConfig, names
from training.sources import DataError, check_labels, data_sha256, load_splits
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
        data_path: CSV or Parquet file, or a folder with a train, valid and test file; when left
            out, a synthetic world with a known ceiling is generated into data/impressions.
        features: Input columns in the model's order, separated by commas.
        categorical: Those of them that are ids or strings, separated by commas.
        group: Column whose values are the lists that GAUC averages over, such as user_id.
        time_column: Split one file by this column's order, instead of by a seeded shuffle.
    """

    data_path: Path | None = None
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
        groups: Of the test split, [rows]; None without a group column.
        oracle: The expectation of each target on the test split, [rows, T]; None unless the data
            is synthetic.
        golden: Raw request rows.
        sha256: Of the data's files.
    """

    schema: FeatureSchema
    train: Matrix
    valid: Matrix
    test: Matrix
    targets: dict[str, Targets]
    groups: npt.NDArray[Any] | None
    oracle: Targets | None
    golden: list[dict[str, Any]]
    sha256: str

    def tensors(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix float32 [rows, C] and targets float32 [rows, T] of a split."""
        return torch.from_numpy(getattr(self, split)), torch.from_numpy(self.targets[split])


def load(config: RankerConfig, targets: Sequence[str]) -> Dataset:
    """Read, check, split and encode the data.

    Args:
        config: Names the data and its columns.
        targets: Columns to predict. The first one is a label, as are others with only 0 and 1; the
            rest are amounts.

    Raises:
        DataError: If the data cannot be trained on; says where and why.
    """
    features, categorical = names(config.features), names(config.categorical)
    if stray := [name for name in categorical if name not in features]:
        raise DataError(f"--categorical {','.join(stray)}: expected names of --features")
    if stray := [name for name in targets if name in features]:
        raise DataError(f"{','.join(stray)}: is both a feature and a target")
    path = config.data_path or DEFAULT_DATA
    if config.data_path is None:
        if not path.exists():
            logger.info("no --data-path: generating a synthetic world in %s", path)
        generate_impressions(path)
    crosses = computable_crosses(features)
    numeric = [name for name in features if name not in {*categorical, *crosses}]
    splits = load_splits(
        path,
        [*numeric, *targets],
        [*categorical, *names(config.group)],
        crosses,
        seed=config.seed,
        time_column=config.time_column or None,
    )
    amounts = [t for t in targets[1:] if not splits.train[t].isin((0, 1)).all()]
    check_labels(splits, [t for t in targets if t not in amounts], amounts)
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
        groups=splits.test[config.group].to_numpy() if config.group else None,
        oracle=_oracle(path, targets) if config.data_path is None else None,
        golden=golden_rows(schema, splits.test),
        sha256=data_sha256(path),
    )


def _oracle(folder: Path, targets: Sequence[str]) -> Targets:
    truth = pd.read_parquet(folder / "test_truth.parquet")
    return truth[list(targets)].to_numpy(np.float32)


def golden_rows(schema: FeatureSchema, test: pd.DataFrame) -> list[dict[str, Any]]:
    """Raw request rows for the archive to prove itself on.

    The first rows of the test split; every fourth one lacks a feature, and one has tokens that no
    vocabulary holds.
    """
    present = [name for name in schema.names if name in test]
    rows = [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in test[present].head(GOLDEN_ROWS).to_dict("records")
    ]
    for i, row in enumerate(rows[3::4]):
        row.pop(present[i % len(present)], None)
    rows[0] |= {f.name: UNKNOWN_TOKEN for f in schema.features if f.kind == "category"}
    return rows


def golden_matrix(schema: FeatureSchema, rows: Sequence[Mapping[str, Any]]) -> Matrix:
    """Encode golden rows the way that training encodes its data, float32 [rows, C]."""
    frame = pd.DataFrame(rows)
    numbers = [f.name for f in schema.features if f.kind == "number" and f.name in frame]
    return to_matrix(schema, frame.astype(dict.fromkeys(numbers, np.float64)))


def baselines(data: Dataset, seed: int, task: int = 0) -> dict[str, dict[str, float]]:
    """Reports of the base rate, of a linear model, and on synthetic data of the truth.

    Args:
        data: The data set.
        seed: Of the folds of the target encoding.
        task: Column of the targets, a binary one.
    """
    labels = {split: targets[:, task] for split, targets in data.targets.items()}
    encodings, encoded = fit_target_encodings(data.schema, data.train, labels["train"], seed)
    linear = make_pipeline(StandardScaler(), LogisticRegression())
    linear.fit(np.nan_to_num(encoded), labels["train"])
    probabilities = {
        "base rate": np.full(len(labels["test"]), labels["train"].mean()),
        "linear": linear.predict_proba(np.nan_to_num(TreeInputs(encodings)(data.test)))[:, 1],
    }
    if data.oracle is not None:
        probabilities["oracle"] = data.oracle[:, task]
    return {
        name: ranking_report(labels["test"], probs, data.groups)
        for name, probs in probabilities.items()
    }


def add_gain(
    reports: Mapping[str, dict[str, float]], metric: str = "auc", chance: float = 0.5
) -> None:
    """Add to each report how far it is on the way from chance to the oracle, if there is one."""
    if "oracle" in reports:
        for report in reports.values():
            report["gain"] = (report[metric] - chance) / (reports["oracle"][metric] - chance)


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
