"""The data of the two-tower model: which items users chose or passed over.

A user is identified by the values of the user columns.

Shapes: B positives, N items of the catalog, C matrix columns.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import tyro

from handlers.feature import Feature
from handlers.schema import FeatureSchema, Matrix
from training.data.feature_flags import FeatureFlags, named_columns, readers_of, split_names
from training.data.features import fit_schema, to_matrix
from training.data.files import read_parquet
from training.data.sources import DataError, DataSet
from training.data.splits import Splits, label_problems, load_splits
from training.golden import golden_rows
from training.metrics.retrieval import Indices, Scores
from training.run import RunConfig
from training.tasks.retrieval.world import generate_interactions, truth_path

DEFAULT_DATA = Path("data/two_tower_data.csv")
DEFAULT_ITEM_ID = "item_id"
# User columns of the default data, by which its truth is stored.
TRUTH_COLUMNS = ["user_age", "user_gender"]

# Maps some of the test positives to their scores of all items, [rows, N].
ScoreItems = Callable[[slice], Scores]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalConfig(FeatureFlags, RunConfig):
    """The data of the two-tower model.

    Attributes:
        data_path: A file; a folder with a train, a valid and a test file; a folder or pattern of
            files that are read one after the other; or the s3:// URL of any of these. By default, a
            synthetic world with a known ceiling is generated into data/two_tower_data.csv.
        user_cols: Input columns of the user tower in its order, separated by commas.
        item_cols: Input columns of the item tower. The item id is embedded if it is among them.
        item_id_col: Column that identifies an item. By default item_id; if the data has no such
            column, the values of item-cols identify the item.
        label: Column with 1 for an item that was chosen and 0 for one that was shown and was not.
        time_column: Column to split a single file by, oldest rows first. By default, the split is a
            seeded shuffle.
    """

    column_flags: ClassVar[Sequence[str]] = ("user_cols", "item_cols", *FeatureFlags.names())

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    user_cols: str = "user_age,user_gender"
    item_cols: str = "item_ctr,item_cvr,item_price"
    item_id_col: str = ""
    label: str = "label"
    time_column: str = ""

    @property
    def item_id(self) -> str:
        """Column that identifies an item, if the data has it."""
        return self.item_id_col or DEFAULT_ITEM_ID


@dataclass(frozen=True)
class Positives:
    """The pairs of a user and a chosen item of one split.

    Attributes:
        users: Matrix of the user tower, float32 [B, C].
        items: Chosen items, as rows of :attr:`RetrievalData.items`, int64 [B].
    """

    users: Matrix
    items: Indices


@dataclass(frozen=True)
class HardNegatives:
    """Items that the users of the training positives were shown and did not choose.

    Attributes:
        items: Rows of :attr:`RetrievalData.items`, grouped by user, int64.
        starts: Position in ``items`` of the first one of each positive's user, int64 [B].
        counts: Number of items of each positive's user, int64 [B]; may be 0.
    """

    items: Indices
    starts: Indices
    counts: Indices


@dataclass(frozen=True)
class RetrievalData:
    """An encoded data set.

    Attributes:
        user_schema: Schema of the user features, learned from the training split.
        item_schema: Schema of the item features, learned from the training split.
        item_ids: Ids of the items of all splits, N; those of the training split come first.
        items: Matrix of the item tower, float32 [N, C].
        counts: Number of training positives of each item, int64 [N].
        n_known: Number of items in the training split.
        train: Positives to fit.
        valid: Positives to select the epoch by.
        test: Positives to report on.
        hard_negatives: Hard negatives of the training positives.
        train_frame: Training split before encoding.
        test_frame: Users of the test positives before encoding, B rows.
        item_frame: Items before encoding, N rows.
        oracle: True probabilities as scores; None unless the data is the default world.
        golden_users: Golden request rows of the user tower.
        golden_items: Golden request rows of the item tower.
        sha256: Fingerprint of the data.
    """

    user_schema: FeatureSchema
    item_schema: FeatureSchema
    item_ids: list[str]
    items: Matrix
    counts: Indices
    n_known: int
    train: Positives
    valid: Positives
    test: Positives
    hard_negatives: HardNegatives
    train_frame: pd.DataFrame
    test_frame: pd.DataFrame
    item_frame: pd.DataFrame
    oracle: ScoreItems | None
    golden_users: list[dict[str, Any]]
    golden_items: list[dict[str, Any]]
    sha256: str


def load_retrieval_data(config: RetrievalConfig) -> RetrievalData:
    """Read, check, split and encode the data.

    Raises:
        DataError: If the data is unusable; the message says where and why.
    """
    if config.uses_default_data:
        if not DEFAULT_DATA.exists():
            logger.info("no --data-path: generating a synthetic world in %s", DEFAULT_DATA)
        generate_interactions(DEFAULT_DATA)
    data = config.data(DEFAULT_DATA)
    config.check_default_columns(data, "user_cols", "item_cols", "label")
    user_cols, item_cols = split_names(config.user_cols), split_names(config.item_cols)
    id_col = config.item_id
    drafts = _drafts(config, user_cols, item_cols)
    splits = _read(data, config, drafts)
    user_schema = fit_schema(
        splits.train, drafts[: len(user_cols)], config.base_schema("user_features")
    )
    item_schema = fit_schema(
        splits.train, drafts[len(user_cols) :], config.base_schema("item_features")
    )
    table = pd.concat(dict(splits.items()))
    split_of = table.index.get_level_values(0)
    items = _codes(table, [id_col] if id_col in table else item_cols)
    row_of = _latest_rows(items, split_of == "train")
    is_positive = (table[config.label] == 1).to_numpy()

    def positives(split: str) -> Positives:
        rows = is_positive & (split_of == split)
        return Positives(to_matrix(user_schema, table[rows]), items[rows])

    train, test_rows = positives("train"), table[is_positive & (split_of == "test")]
    names = table[id_col].iloc[row_of] if id_col in table else range(len(row_of))
    item_ids = [str(name) for name in names]
    return RetrievalData(
        user_schema=user_schema,
        item_schema=item_schema,
        item_ids=item_ids,
        items=to_matrix(item_schema, table.iloc[row_of]),
        counts=np.bincount(train.items, minlength=len(row_of)),
        n_known=len(np.unique(items[split_of == "train"])),
        train=train,
        valid=positives("valid"),
        test=positives("test"),
        hard_negatives=_hard_negatives(
            _codes(table, user_cols), items, is_positive, split_of == "train"
        ),
        train_frame=splits.train,
        test_frame=test_rows[user_cols],
        item_frame=table.iloc[row_of][item_cols],
        oracle=_oracle(test_rows, item_ids) if config.uses_default_data else None,
        golden_users=golden_rows(user_schema, splits.test),
        golden_items=golden_rows(item_schema, splits.test),
        sha256=data.sha256(*splits),
    )


def _drafts(
    config: RetrievalConfig, user_cols: Sequence[str], item_cols: Sequence[str]
) -> list[Feature]:
    """Return the features of users and then of items, before anything is learned from data."""
    if not user_cols or not item_cols:
        raise DataError("--user-cols, --item-cols: expected at least one column in each")
    columns = Counter([*user_cols, *item_cols, config.label])
    if repeated := [name for name, n in columns.items() if n > 1]:
        raise DataError(
            f"{', '.join(repeated)}: expected once among --user-cols, --item-cols and --label"
        )
    if config.item_id in named_columns("multi", config.multi):
        raise DataError(f"--multi {config.item_id}: identifies an item, so it has one value")
    drafts = config.drafts([*user_cols, *item_cols], "--user-cols or --item-cols")
    return [
        replace(draft, kind="category") if draft.name == config.item_id else draft
        for draft in drafts
    ]


def _read(data: DataSet, config: RetrievalConfig, drafts: Sequence[Feature]) -> Splits:
    """Read the splits; :func:`load_retrieval_data` documents the errors."""
    columns, id_col = [draft.name for draft in drafts], config.item_id

    def check(splits: Splits) -> Iterator[str]:
        yield from label_problems(splits, [], [config.label])
        for split, frame in splits.items():
            if config.label in frame:
                labels = frame[config.label].dropna()
                stray = labels[(labels >= 0) & ~labels.isin((0, 1))]
                if len(stray):
                    where = f"{split} split, column {config.label}"
                    yield f"{where}: expected 0 or 1, got {stray.iloc[0]:g}"
            if id_col in frame and frame[id_col].hasnans:
                n = frame[id_col].isna().sum()
                yield f"{split} split, column {id_col}: {n} of {len(frame)} rows are empty"

    return load_splits(
        data,
        [*columns, config.label],
        [id_col],
        [] if config.item_id_col or id_col in columns else [id_col],
        readers=readers_of(drafts),
        other_flags=dict.fromkeys(columns, config.flags_of_kinds()),
        seed=config.seed,
        time_column=config.time_column or None,
        check=check,
    )


def _codes(frame: pd.DataFrame, columns: Sequence[str]) -> Indices:
    """Number the distinct values of columns in order of appearance, int64 [rows]."""
    groups = frame.groupby(list(columns), dropna=False, sort=False)
    return np.asarray(groups.ngroup(), dtype=np.int64)


def _latest_rows(items: Indices, in_train: npt.NDArray[np.bool_]) -> Indices:
    """Pick a row for each item, int64 [N]: its last training row, else its last row."""
    latest = np.empty(items.max() + 1, dtype=np.int64)
    for rows in (np.flatnonzero(~in_train), np.flatnonzero(in_train)):
        latest[items[rows]] = rows  # of repeated items, NumPy keeps the last row
    return latest


def _hard_negatives(
    users: Indices,
    items: Indices,
    is_positive: npt.NDArray[np.bool_],
    in_train: npt.NDArray[np.bool_],
) -> HardNegatives:
    """Group the training rows without a choice by user; all arguments are [rows]."""
    negatives, positives = np.flatnonzero(in_train & ~is_positive), in_train & is_positive
    counts = np.bincount(users[negatives], minlength=users.max() + 1)
    starts = counts.cumsum() - counts
    order = np.argsort(users[negatives], kind="stable")
    return HardNegatives(
        items[negatives[order]], starts[users[positives]], counts[users[positives]]
    )


def _oracle(test: pd.DataFrame, item_ids: Sequence[str]) -> ScoreItems | None:
    """Read the true probabilities; None if the columns of the data were replaced."""
    path = truth_path(DEFAULT_DATA)
    if not path.exists() or not {*TRUTH_COLUMNS, DEFAULT_ITEM_ID} <= set(test):
        return None
    truth = read_parquet(path).pivot(
        index=TRUTH_COLUMNS, columns=DEFAULT_ITEM_ID, values="probability"
    )
    users = truth.index.get_indexer(pd.MultiIndex.from_frame(test[TRUTH_COLUMNS].astype(np.int64)))
    probabilities = truth[list(item_ids)].to_numpy()
    return lambda rows: probabilities[users[rows]]
