"""Cut a data set into train, valid and test split, and check the labels of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd

from training.data.cells import Reader
from training.data.sources import SPLIT_NAMES, DataError, DataSet
from training.data.tables import Flags, read_with_problems

MIN_ROWS = 10


class Splits(NamedTuple):
    """The three parts of a data set: fit on train, select on valid, report test once."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame

    def items(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Iterate over the names and the frames."""
        return zip(self._fields, self, strict=True)


def load_splits(
    data: DataSet,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    readers: Mapping[str, Reader] = MappingProxyType({}),
    other_flags: Mapping[str, Flags] = MappingProxyType({}),
    seed: int = 0,
    time_column: str | None = None,
    check: Callable[[Splits], Iterable[str]] = lambda _: (),
) -> Splits:
    """Read a data set as train, valid and test split.

    Args:
        data: Data set with a table for each split, or with one table, which is cut 80/10/10.
        numeric: As for :func:`training.data.tables.read_table`.
        categorical: The same.
        optional: The same.
        readers: The same.
        other_flags: The same.
        seed: Seed of the shuffle that precedes the cut of one table.
        time_column: Column of numbers or ISO dates to sort one table by instead; the latest rows
            become the test split. Without it the rows are shuffled. Rows that have no order of
            their own are sorted by content first, so that every run makes the same cut.
        check: Lists further problems of the splits, which lack the columns with wrong cells.

    Returns:
        The splits, with the columns that ``read_table`` returns.

    Raises:
        DataError: As ``read_table`` does, with the problems that ``check`` lists; or if one table
            is too short to cut.
    """
    columns = numeric, categorical, optional
    if set(data.tables) == set(SPLIT_NAMES):
        parts = [
            read_with_problems(
                data.tables[split], *columns, readers=readers, other_flags=other_flags
            )
            for split in SPLIT_NAMES
        ]
        problems = [problem for _, found in parts for problem in found]
        splits = Splits(*(frame for frame, _ in parts))
    else:
        frame, problems = read_with_problems(
            data.table, *columns, time_column, readers=readers, other_flags=other_flags
        )
        if len(frame) < MIN_ROWS:
            short = (
                f"{data.name}: expected {MIN_ROWS} rows or more to cut 80/10/10, got {len(frame)}"
            )
            raise DataError("\n".join(problems or [short]))
        if time_column is None:
            if not all(source.ordered for source in data.table):
                frame = frame.iloc[np.argsort(data.row_hashes(frame))]
            frame = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
        first_valid, first_test = len(frame) * 8 // 10, len(frame) * 9 // 10
        splits = Splits(frame[:first_valid], frame[first_valid:first_test], frame[first_test:])
    if problems := [*problems, *check(splits)]:
        raise DataError("\n".join(problems))
    return splits


def label_problems(
    splits: Splits, binary: Sequence[str], nonnegative: Sequence[str] = ()
) -> list[str]:
    """Find labels that a model could not learn or be measured on.

    Args:
        splits: The data; every split is checked.
        binary: Labels of classification: 0 or 1, both present.
        nonnegative: Labels of regression: 0 or more, not all 0.

    Returns:
        A line for each split and column that is wrong, with the first wrong value. Columns that a
        split lacks are skipped.
    """
    return [
        f"{split} split, column {name}: {problem}"
        for split, frame in splits.items()
        for name in (*binary, *nonnegative)
        if name in frame and (problem := _label_problem(frame[name], name in binary))
    ]


def _label_problem(labels: pd.Series[float], binary: bool) -> str:
    if labels.hasnans:
        return f"{labels.isna().sum()} of {len(labels)} rows are empty"
    allowed = labels.isin((0, 1)) if binary else labels >= 0
    if not allowed.all():
        expected = "0 or 1" if binary else "0 or more"
        return f"expected {expected}, got {labels[~allowed].iloc[0]:g}"
    if binary and labels.nunique() == 1:
        return f"expected both 0 and 1, got only {labels.iloc[0]:g}"
    return "" if labels.any() else "expected some value above 0, got only 0"
