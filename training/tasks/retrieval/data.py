"""Who chose what from a catalog: the data of the two-tower model, its baselines, its report.

Shapes: B choices, N items of the catalog, C matrix columns.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import tyro

from handlers.schema import FeatureSchema, Matrix
from training.data.features import fit_schema, to_matrix
from training.data.files import read_parquet
from training.data.sources import DataError, DataSet
from training.data.splits import Splits, label_problems, load_splits
from training.golden import golden_rows
from training.metrics.retrieval import Indices, Scores
from training.run import RunConfig, split_names
from training.tasks.retrieval.world import generate_interactions, truth_path

DEFAULT_DATA = Path("data/two_tower_data.csv")
DEFAULT_ITEM_ID = "item_id"
# Columns of the default data that its truth goes by.
TRUTH_COLUMNS = ["user_age", "user_gender"]

# Scores of all items for some rows of the test split, [rows, N].
ScoreItems = Callable[[slice], Scores]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalConfig(RunConfig):
    """Where the data comes from.

    Attributes:
        data_path: A file, a folder with a train, valid and test file, a folder or pattern of files
            that follow each other, or the s3:// URL of one of these; when left out, a synthetic
            world with a known ceiling is generated into data/two_tower_data.csv.
        user_cols: Input columns of the user tower in its order, separated by commas.
        item_cols: Input columns of the item tower; with the item id among them it is embedded too.
        categorical: Those of both that are ids or strings, separated by commas.
        item_id_col: Column that tells items apart; when left out item_id, or where the data has
            none, the values of item-cols.
        label: Column with 1 for an item that was chosen, 0 for one that was shown and was not.
        time_column: Split one file by this column's order, instead of by a seeded shuffle.
    """

    column_flags: ClassVar[Sequence[str]] = ("user_cols", "item_cols", "categorical")

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    user_cols: str = "user_age,user_gender"
    item_cols: str = "item_ctr,item_cvr,item_price"
    categorical: str = ""
    item_id_col: str = ""
    label: str = "label"
    time_column: str = ""

    @property
    def item_id(self) -> str:
        """Column that tells items apart, if the data has it."""
        return self.item_id_col or DEFAULT_ITEM_ID


@dataclass(frozen=True)
class Positives:
    """The choices of a split.

    Attributes:
        users: Matrix of the user tower, float32 [B, C].
        items: What was chosen, as a row of :attr:`RetrievalData.items`, int64 [B].
    """

    users: Matrix
    items: Indices


@dataclass(frozen=True)
class HardNegatives:
    """What the users of the training split were shown and did not choose.

    A user is who the user's columns tell apart.

    Attributes:
        items: Rows of :attr:`RetrievalData.items`, all of one user together, int64.
        starts: Where the items of a choice's user begin, int64 [B].
        counts: How many they are, int64 [B]; may be 0.
    """

    items: Indices
    starts: Indices
    counts: Indices


@dataclass(frozen=True)
class RetrievalData:
    """A data set of choices, encoded.

    Attributes:
        user_schema: Learned from the training split.
        item_schema: The same for items.
        item_ids: Of all items of all splits, those of the training split first, N.
        items: Matrix of the item tower, float32 [N, C].
        counts: How often an item was chosen in the training split, int64 [N].
        n_known: How many items the training split has.
        train: Positives to fit.
        valid: Positives to select by.
        test: Positives to report.
        rejected: Of the training split.
        train_frame: The training split before it was encoded.
        test_frame: The users of the test split's choices before they were encoded, B rows.
        item_frame: The items before they were encoded, N rows.
        oracle: The truth's own scores; None unless the data is the default world.
        golden_users: Raw request rows of the user tower.
        golden_items: The same for items.
        sha256: Tells the data from other data.
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
        DataError: If the data cannot be trained on; says where and why.
    """
    if config.uses_default_data:
        if not DEFAULT_DATA.exists():
            logger.info("no --data-path: generating a synthetic world in %s", DEFAULT_DATA)
        generate_interactions(DEFAULT_DATA)
    data = config.data(DEFAULT_DATA)
    user_cols, item_cols = split_names(config.user_cols), split_names(config.item_cols)
    id_col = config.item_id
    splits = _read(data, config, user_cols, item_cols)
    categorical = {*split_names(config.categorical), id_col}
    user_schema, item_schema = (
        fit_schema(splits.train, cols, [name for name in cols if name in categorical])
        for cols in (user_cols, item_cols)
    )
    every = pd.concat(dict(splits.items()))
    split_of = every.index.get_level_values(0)
    items = _codes(every, [id_col] if id_col in every else item_cols)
    row_of = _latest_rows(items, split_of == "train")
    was_chosen = (every[config.label] == 1).to_numpy()

    def chosen(split: str) -> Positives:
        rows = was_chosen & (split_of == split)
        return Positives(to_matrix(user_schema, every[rows]), items[rows])

    train, test_rows = chosen("train"), every[was_chosen & (split_of == "test")]
    names = every[id_col].iloc[row_of] if id_col in every else range(len(row_of))
    item_ids = [str(name) for name in names]
    return RetrievalData(
        user_schema=user_schema,
        item_schema=item_schema,
        item_ids=item_ids,
        items=to_matrix(item_schema, every.iloc[row_of]),
        counts=np.bincount(train.items, minlength=len(row_of)),
        n_known=len(np.unique(items[split_of == "train"])),
        train=train,
        valid=chosen("valid"),
        test=chosen("test"),
        hard_negatives=_hard_negatives(
            _codes(every, user_cols), items, was_chosen, split_of == "train"
        ),
        train_frame=splits.train,
        test_frame=test_rows[user_cols],
        item_frame=every.iloc[row_of][item_cols],
        oracle=_oracle(test_rows, item_ids) if config.uses_default_data else None,
        golden_users=golden_rows(user_schema, splits.test),
        golden_items=golden_rows(item_schema, splits.test),
        sha256=data.sha256(*splits),
    )


def _read(
    data: DataSet, config: RetrievalConfig, user_cols: list[str], item_cols: list[str]
) -> Splits:
    both, categorical = [*user_cols, *item_cols], split_names(config.categorical)
    id_col = config.item_id
    if not user_cols or not item_cols:
        raise DataError("--user-cols, --item-cols: expected a column or more in each")
    if twice := [name for name, n in Counter([*both, config.label]).items() if n > 1]:
        raise DataError(
            f"{', '.join(twice)}: expected once among --user-cols, --item-cols and --label"
        )
    if stray := [name for name in categorical if name not in both]:
        raise DataError(
            f"--categorical {','.join(stray)}: expected names of --user-cols or --item-cols"
        )
    tokens = list(dict.fromkeys([*categorical, id_col]))

    def check(splits: Splits) -> Iterator[str]:
        yield from label_problems(splits, [], [config.label])
        for split, table in splits.items():
            if config.label in table:
                labels = table[config.label].dropna()
                stray = labels[(labels >= 0) & ~labels.isin((0, 1))]
                if len(stray):
                    where = f"{split} split, column {config.label}"
                    yield f"{where}: expected 0 or 1, got {stray.iloc[0]:g}"
            if id_col in table and table[id_col].hasnans:
                n = table[id_col].isna().sum()
                yield f"{split} split, column {id_col}: {n} of {len(table)} rows are empty"

    return load_splits(
        data,
        [*(name for name in both if name not in tokens), config.label],
        tokens,
        [] if config.item_id_col or id_col in both else [id_col],
        seed=config.seed,
        time_column=config.time_column or None,
        check=check,
    )


def _codes(frame: pd.DataFrame, columns: Sequence[str]) -> Indices:
    """Number distinct values of columns in the order that they appear, int64 [rows]."""
    groups = frame.groupby(list(columns), dropna=False, sort=False)
    return np.asarray(groups.ngroup(), dtype=np.int64)


def _latest_rows(items: Indices, in_train: npt.NDArray[np.bool_]) -> Indices:
    """A row for each item: the last of the training split, or else the last there is."""
    latest = np.empty(items.max() + 1, dtype=np.int64)
    for rows in (np.flatnonzero(~in_train), np.flatnonzero(in_train)):
        latest[items[rows]] = rows  # of several rows for one item, the last stays
    return latest


def _hard_negatives(
    users: Indices,
    items: Indices,
    was_chosen: npt.NDArray[np.bool_],
    in_train: npt.NDArray[np.bool_],
) -> HardNegatives:
    rejected, chosen = np.flatnonzero(in_train & ~was_chosen), in_train & was_chosen
    counts = np.bincount(users[rejected], minlength=users.max() + 1)
    starts = counts.cumsum() - counts
    order = np.argsort(users[rejected], kind="stable")
    return HardNegatives(items[rejected[order]], starts[users[chosen]], counts[users[chosen]])


def _oracle(test: pd.DataFrame, item_ids: Sequence[str]) -> ScoreItems | None:
    path = truth_path(DEFAULT_DATA)
    if not path.exists() or not {*TRUTH_COLUMNS, DEFAULT_ITEM_ID} <= set(test):
        return None
    truth = read_parquet(path).pivot(
        index=TRUTH_COLUMNS, columns=DEFAULT_ITEM_ID, values="probability"
    )
    users = truth.index.get_indexer(pd.MultiIndex.from_frame(test[TRUTH_COLUMNS].astype(np.int64)))
    probabilities = truth[list(item_ids)].to_numpy()
    return lambda rows: probabilities[users[rows]]
