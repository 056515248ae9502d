"""The data of the ranking models.

Shapes: B rows, C matrix columns, T targets.
"""

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
from training.data.feature_flags import EventFlags, readers_of, split_names
from training.data.features import DEFAULT_FEATURES, computable_crosses, fit_schema, to_matrix
from training.data.files import read_parquet
from training.data.sources import DataError
from training.data.splits import Splits, empty_cells, label_problems, load_splits
from training.engine.fit import WeightedRows
from training.golden import Golden, golden_matrix, golden_rows
from training.run import RunConfig
from training.tasks.ranking.weights import (
    RowWeights,
    WeightFlags,
    row_weights,
    sample_negatives,
    weight_problems,
)
from training.tasks.ranking.world import IMPRESSIONS, World

Targets = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankingConfig(EventFlags, WeightFlags, RunConfig):
    """The data of a ranking model.

    Attributes:
        data_path: A file; a folder with a train, a valid and a test file; a folder or pattern of
            files that are read one after the other; or the s3:// URL of any of these. By default, a
            synthetic world with a known ceiling is generated into data/impressions.
        features: Input columns in the order of the model, separated by commas.
        group: Column to average GAUC over, such as user_id; for rank objectives, the column of the
            lists to rank, such as session_id.
        time_column: Column to split a single file by, oldest rows first. By default, the split is a
            seeded shuffle.
    """

    column_flags: ClassVar[Sequence[str]] = ("features", *EventFlags.names())
    world: ClassVar[World] = IMPRESSIONS

    data_path: str | None = None
    features: str = ",".join(DEFAULT_FEATURES)
    group: str = ""
    time_column: str = ""


@dataclass(frozen=True)
class RankingData:
    """An encoded data set.

    Attributes:
        schema: Feature schema, learned from the training split.
        train: Training matrix, float32 [B, C].
        valid: Validation matrix, float32 [B, C].
        test: Test matrix, float32 [B, C].
        targets: Targets by split, float32 [B, T].
        weights: Weights in the loss of the rows of train and valid, float32 [B], their mean is 1.
        train_frame: Training split before encoding, with the negatives that sampling dropped.
        test_frame: Test split before encoding: the features and any other columns that were read.
        groups: Group of each row by split, [B]; empty without a group column.
        oracle: Expectation of each target on the test split, float32 [B, T]; None unless the data
            is synthetic.
        golden_rows: Golden request rows.
        sha256: Fingerprint of the data.
    """

    schema: FeatureSchema
    train: Matrix
    valid: Matrix
    test: Matrix
    targets: dict[str, Targets]
    weights: dict[str, RowWeights]
    train_frame: pd.DataFrame
    test_frame: pd.DataFrame
    groups: dict[str, npt.NDArray[Any]]
    oracle: Targets | None
    golden_rows: list[dict[str, Any]]
    sha256: str

    def tensors(self, split: str) -> WeightedRows:
        """Return the matrix, the targets and the weights of a split."""
        return WeightedRows(
            torch.from_numpy(getattr(self, split)),
            torch.from_numpy(self.targets[split]),
            torch.from_numpy(self.weights[split]),
        )

    def meta(self) -> dict[str, Any]:
        """Return what the meta file records about the data."""
        return {
            "feature_columns": list(self.schema.names),
            "feature_count": len(self.schema.names),
            "features": self.schema.to_json(),
            "vocabularies": self.schema.vocabularies(),
            "data_sha256": self.sha256,
        }

    def golden(self, predict: Callable[[Matrix], Sequence[Any]]) -> Golden:
        """Pair the golden rows with the training code's own predictions.

        Args:
            predict: Maps a matrix, float32 [B, C], to B predictions as JSON.
        """
        return Golden(self.golden_rows, predict(golden_matrix(self.schema, self.golden_rows)))


def load_ranking_data(
    config: RankingConfig,
    targets: Sequence[str],
    columns: Sequence[str] = (),
    *,
    whole_groups: bool = False,
    has_grades: bool = False,
) -> RankingData:
    """Read, check, split and encode the data.

    Args:
        config: The data and its columns.
        targets: Columns to predict. The first one must be a label. Others are labels if they hold
            only 0 and 1, else amounts.
        columns: Further columns to keep in the test frame.
        whole_groups: Keep the rows of a group in one split; every row must have a group.
        has_grades: Whether the first target may be a grade of relevance instead of a label.

    Raises:
        DataError: If the data is unusable; the message says where and why.
    """
    features = split_names(config.features)
    features += [name for name in config.added_features() if name not in features]
    drafts = config.drafts(features)
    if stray := [name for name in targets if name in features]:
        raise DataError(f"{','.join(stray)}: is both a feature and a target")
    weight = config.weight_column
    if weight in {*features, *targets} - {""}:
        raise DataError(f"--weight-column {weight}: is also a feature or a target")
    folder = config.world.folder
    if config.uses_default_data:
        if not folder.exists():
            logger.info("no --data-path: generating a synthetic world in %s", folder)
        config.world.generate(folder)
    data = config.data(folder)
    crosses = computable_crosses(features)
    config.check_default_columns(data, "features", "label", "targets", optional=crosses)
    extra = [
        name for name in (*columns, config.group) if name not in {"", weight, *features, *targets}
    ]

    def check(splits: Splits) -> list[str]:
        train = splits.train
        amounts = [t for t in targets[1:] if t not in train or not train[t].isin((0, 1)).all()]
        return [
            *label_problems(
                splits,
                [t for t in targets[has_grades:] if t not in amounts],
                amounts,
                targets[:has_grades],
            ),
            *(weight_problems(splits, weight) if weight else ()),
            *(empty_cells(splits, config.group) if whole_groups else ()),
        ]

    splits = load_splits(
        data,
        [
            *(name for name in features if name not in crosses),
            *targets,
            *([weight] if weight else []),
        ],
        extra,
        crosses,
        readers=readers_of(drafts),
        other_flags=dict.fromkeys(features, config.flags_of_kinds()),
        seed=config.seed,
        time_column=config.time_column or None,
        group_column=config.group if whole_groups else None,
        check=check,
    )
    if config.group and config.group not in splits.test:
        raise DataError(
            f"--group {config.group}: expected a column of the data, got a product of features"
        )
    label = targets[0]
    train = sample_negatives(splits.train, label, config.negative_sampling_rate, config.seed)
    schema = fit_schema(train, drafts, config.base_schema())
    _log_clients(schema)
    return RankingData(
        schema=schema,
        train=to_matrix(schema, train),
        valid=to_matrix(schema, splits.valid),
        test=to_matrix(schema, splits.test),
        targets={
            name: np.array(frame[list(targets)], dtype=np.float32)
            for name, frame in splits._replace(train=train).items()
        },
        weights={
            "train": row_weights(train, label, config, int((splits.train[label] == 0).sum())),
            "valid": row_weights(splits.valid, label, config),
        },
        train_frame=splits.train,
        test_frame=splits.test,
        groups={
            name: frame[config.group].to_numpy()
            for name, frame in splits._replace(train=train).items()
            if config.group
        },
        oracle=_oracle(folder, targets) if config.uses_default_data else None,
        golden_rows=golden_rows(schema, splits.test),
        sha256=data.sha256(*splits),
    )


def _log_clients(schema: FeatureSchema) -> None:
    """Say which features a client cannot send that sends numbers only."""
    if texts := [f.name for f in schema.features if f.sent_as == "text"]:
        logger.info(
            "a client that sends numbers only, such as Go's map[string]float64, cannot send %s: "
            "add --hash-ids, or write integer ids",
            ", ".join(texts),
        )
    if lists := [f.name for f in schema.features if f.sent_as == "list"]:
        logger.info("a client that sends numbers only cannot send lists: %s", ", ".join(lists))


def _oracle(folder: Path, targets: Sequence[str]) -> Targets:
    truth = read_parquet(folder / "test_truth.parquet")
    return truth[list(targets)].to_numpy(np.float32)
