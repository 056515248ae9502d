"""Interactions of users with items: their flags, and the data that models train on.

Shapes: U users, C matrix columns of the user features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pandas as pd
import torch
import tyro
from torch import Tensor

from handlers.request_rows import HISTORY_KEY, USER_FEATURES_KEY
from handlers.schema import FeatureSchema
from training.bounds import Count, Share
from training.data.config import DataConfig
from training.data.feature_flags import FeatureFlags, readers_of, split_names
from training.data.features import fit_schema, to_matrix
from training.data.sources import DataError, DataSet
from training.data.tables import read_table
from training.run import RunConfig
from training.tasks.next_item.split import LeaveOneOutSplit, leave_one_out
from training.tasks.next_item.world import INTERACTIONS, World

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NextItemConfig(FeatureFlags, RunConfig):
    """Where the interactions are, and which of their columns describe the user.

    Attributes:
        data_path: A file with a row for each interaction of a user with an item; a folder with a
            file named interactions; a folder or pattern of files to read one after the other; or
            the s3:// URL of one of these. By default a synthetic world with a known ceiling is
            generated into data/sequences.
        user_col: Column of the user.
        item_col: Column of the item.
        time_column: Column to sort the rows by; by default they keep the order of the file.
        user_features: Input columns that describe the user, separated by commas.
        exclude_history: Rank without the items of the history, for data in which nobody takes an
            item twice.
        min_count: Items that occur less often in training are out of vocabulary.
        valid_share: Share of the users whose second to last item selects the epoch.
    """

    column_flags: ClassVar[Sequence[str]] = ("user_features", *FeatureFlags.names())

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    user_col: str = "user_id"
    item_col: str = "item_id"
    time_column: str = ""
    user_features: str = "user_age,user_gender"
    exclude_history: bool = False
    min_count: Count = 2
    valid_share: Share = 0.2


@dataclass(frozen=True)
class NextItemData:
    """Interactions, split and encoded.

    Attributes:
        interactions: All rows as they were read, oldest first.
        split: The item sequence of each user.
        schema: Schema of the user features.
        user_frame: Each user's latest features before encoding, U rows in the order of the split.
        user_matrix: The same, encoded, float32 [U, C].
        sha256: Hash of the data.
    """

    interactions: pd.DataFrame
    split: LeaveOneOutSplit
    schema: FeatureSchema
    user_frame: pd.DataFrame
    user_matrix: Tensor
    sha256: str


def find_data(config: DataConfig, world: World, generate: bool = True) -> DataSet:
    """Find the data that the flags name.

    Args:
        config: Configuration of the run.
        world: The world to use when no flag names any data.
        generate: Whether to generate the world where its folder does not exist.

    Raises:
        DataError: If there is no data, or the flags contradict each other.
    """
    if config.uses_default_data and not world.folder.exists():
        if not generate:
            raise DataError(
                f"{world.folder}: no such folder; name a file with --data, or leave out --no-gen"
            )
        logger.info("no --data: generating a synthetic world in %s", world.folder)
        world.generate(world.folder)
    return config.data(world.folder, Path(world.file).stem)


def load(config: NextItemConfig) -> NextItemData:
    """Read, split and encode the interactions.

    Raises:
        DataError: If the data cannot be trained on; the message says where and why.
    """
    data = find_data(config, INTERACTIONS)
    config.check_default_columns(data, "user_col", "item_col", "user_features")
    features = _feature_names(config)
    drafts = config.drafts(features, "--user-features")
    interactions = read_table(
        data.table,
        features,
        [config.user_col, config.item_col],
        readers=readers_of(drafts),
        order_by=config.time_column or None,
        other_flags=dict.fromkeys(features, config.flags_of_kinds()),
    )
    base = config.base()
    split = leave_one_out(
        interactions[config.user_col],
        interactions[config.item_col],
        min_count=config.min_count,
        vocabulary=base.vocabularies()[HISTORY_KEY] if base else (),
        valid_share=config.valid_share,
        seed=config.seed,
    )
    by_user = interactions.groupby(interactions[config.user_col].to_numpy())
    user_frame = by_user[features].last().loc[list(split.users)]
    schema = fit_schema(user_frame, drafts, config.base_schema())
    return NextItemData(
        interactions=interactions,
        split=split,
        schema=schema,
        user_frame=user_frame,
        user_matrix=torch.from_numpy(to_matrix(schema, user_frame)),
        sha256=data.sha256(interactions),
    )


def _feature_names(config: NextItemConfig) -> list[str]:
    """Return the names of all user features.

    Raises:
        DataError: If a flag names what it cannot.
    """
    features = split_names(config.user_features)
    if not features:
        raise DataError("--user-features: expected a column or more")
    if reserved := {USER_FEATURES_KEY, HISTORY_KEY}.intersection(features):
        raise DataError(
            f"--user-features {', '.join(reserved)}: request rows use that key for something else; "
            "rename the column"
        )
    return features
