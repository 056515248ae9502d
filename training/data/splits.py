"""Cut a data set into train, valid and test split, and check the labels of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.data.cells import Reader
from training.data.sources import SPLIT_NAMES, DataError, DataSet
from training.data.tables import Flags, read_with_problems

MIN_ROWS = 10
# XGBoost's gain of a grade is 2 ^ grade, which it computes up to here.
MAX_GRADE = 31
GRADES = f"a whole number from 0 to {MAX_GRADE}"


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
    group_column: str | None = None,
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
        group_column: Column of ``categorical`` whose groups of rows are not cut in two: whole
            groups are shuffled, or sorted by their first row.
        check: Lists further problems of the splits, which lack the columns with wrong cells.

    Returns:
        The splits, with the columns that ``read_table`` returns.

    Raises:
        DataError: As ``read_table`` does, with the problems that ``check`` lists; or if one table
            is too short to cut or has too few groups.
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
        if group_column is not None and group_column in frame:
            groups, names = pd.factorize(frame[group_column], use_na_sentinel=False)
            if len(names) < len(SPLIT_NAMES):
                few = (
                    f"{data.name}, column {group_column}: expected {len(SPLIT_NAMES)} groups or "
                    f"more, got {len(names)}"
                )
                raise DataError("\n".join(problems or [few]))
            if time_column is None:
                groups = np.random.default_rng(seed).permutation(len(names))[groups]
            frame = frame.iloc[np.argsort(groups, kind="stable")].reset_index(drop=True)
            first_valid, first_test = _cuts(np.bincount(groups), first_valid, first_test)
        splits = Splits(frame[:first_valid], frame[first_valid:first_test], frame[first_test:])
    if problems := [*problems, *check(splits)]:
        raise DataError("\n".join(problems))
    return splits


def _cuts(sizes: npt.NDArray[np.int64], *cuts: int) -> list[int]:
    """Move cuts to the nearest ends of groups, with a group or more on both sides of each.

    Args:
        sizes: Rows of each group in order, at least one group more than cuts.
        cuts: Row numbers in ascending order.
    """
    ends = np.cumsum(sizes)[:-1]
    moved: list[int] = []
    for i, cut in enumerate(cuts, start=1):
        left = ends[: len(ends) - len(cuts) + i]
        left = left[left > (moved[-1] if moved else 0)]
        moved.append(int(left[np.abs(left - cut).argmin()]))
    return moved


def label_problems(
    splits: Splits,
    binary: Sequence[str],
    nonnegative: Sequence[str] = (),
    grades: Sequence[str] = (),
) -> list[str]:
    """Find labels that a model could not learn or be measured on.

    Args:
        splits: The data; every split is checked.
        binary: Labels of classification: 0 or 1, both present.
        nonnegative: Labels of regression: 0 or more, not all 0.
        grades: Grades of relevance: whole numbers from 0 to 31, both 0 and another.

    Returns:
        A line for each split and column that is wrong, with the first wrong value. Columns that a
        split lacks are skipped.
    """
    return [
        f"{split} split, column {name}: {problem}"
        for split, frame in splits.items()
        for names, kind in ((binary, "0 or 1"), (grades, GRADES), (nonnegative, "0 or more"))
        for name in names
        if name in frame and (problem := _label_problem(frame[name], kind))
    ]


def _label_problem(labels: pd.Series[float], expected: str) -> str:
    if labels.hasnans:
        return f"{labels.isna().sum()} of {len(labels)} rows are empty"
    allowed = labels >= 0
    if expected == "0 or 1":
        allowed = labels.isin((0, 1))
    elif expected == GRADES:
        allowed = labels.isin(range(MAX_GRADE + 1))
    if not allowed.all():
        return f"expected {expected}, got {labels[~allowed].iloc[0]:g}"
    if expected == "0 or 1" and labels.nunique() == 1:
        return f"expected both 0 and 1, got only {labels.iloc[0]:g}"
    if not labels.any():
        return "expected some value above 0, got only 0"
    if expected == GRADES and labels.all():
        return f"expected some 0, got only {labels.min():g} or more"
    return ""


def empty_cells(splits: Splits, column: str) -> list[str]:
    """Return a line for each split in which cells of a column are empty."""
    return [
        f"{split} split, column {column}: {n} of {len(frame)} rows are empty"
        for split, frame in splits.items()
        if column in frame and (n := int(frame[column].isna().sum()))
    ]
