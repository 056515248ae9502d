"""Reading data: record batches, wherever they come from, become checked data frames.

All that can be wrong with a table is found here, before training starts, and told with its name,
the row and the column. Numbers come out as float32, categories as text tokens, missing cells as
NaN.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from tqdm import tqdm

from handlers.errors import UserError
from handlers.schema import ID_AS_FLOAT, canonical_token

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "valid", "test")

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Words for a missing number, such as NaN and NA.
_NO_NUMBER = {word.lower() for word in pyarrow.csv.ConvertOptions().null_values if word}
_HASHED_ROWS = 1 << 20  # rows whose tokens are in memory as objects at once

Numbers = npt.NDArray[np.float32]


class DataError(UserError):
    """The data cannot be trained on; the message says where, what was expected and what came."""


class Source(Protocol):
    """Rows in an order: of a file, or of a query."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def first_row(self) -> int:
        """The number that messages give its first row."""

    @property
    def ordered(self) -> bool:
        """Whether its rows come in the same order each time."""

    def columns(self) -> list[str]:
        """Names of all columns."""

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows, whole or with an error.

        Args:
            columns: Those to read; a batch may have more.

        Raises:
            DataError: The source cannot be read to its end.
            OSError: The same.
            pa.ArrowException: The same.
        """

    def sha256(self) -> str | None:
        """Hash of the content; None where only reading the rows shows it."""


# Sources whose rows follow each other.
Table = Sequence[Source]


@dataclass(frozen=True)
class DataSet:
    """Where the rows are.

    Attributes:
        name: For messages.
        tables: By split; a single one, without a name, when it is still to be cut.
        extra_columns: Those that say nothing of which row it is: training did not read them.
    """

    name: str
    tables: Mapping[str, Table]
    extra_columns: Sequence[str] = ()

    @property
    def table(self) -> Table:
        """All rows."""
        return [source for table in self.tables.values() for source in table]

    def sha256(self, *frames: pd.DataFrame) -> str:
        """Tell this data from other data.

        Args:
            frames: What was read of it: tells the rows of a query, in whatever order they come.

        Returns:
            64 hexadecimal digits.

        Raises:
            DataError: A source cannot be read.
        """
        digests = []
        for source in self.table:
            try:
                digests.append(source.sha256())
            except OSError as error:
                raise DataError(f"{source.name}: cannot be read: {error}") from error
        known = [digest for digest in digests if digest is not None]
        if len(known) < len(digests):
            hashes = np.concatenate([self.row_hashes(frame) for frame in frames])
            return hashlib.sha256(np.sort(hashes).tobytes()).hexdigest()
        return known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()

    def row_hashes(self, frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
        """A hash of each row that was read of it, [rows], whatever extra columns were."""
        own = [name for name in map(str, frame) if name not in self.extra_columns]
        return row_hashes(frame[sorted(own)])


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set: fit on train, select on valid, report test once."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame


def read_table(
    table: Table,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    order_by: str | None = None,
) -> pd.DataFrame:
    """Read the named columns.

    Args:
        table: Where the rows are.
        numeric: Columns to read as numbers.
        categorical: Columns to read as tokens; 196, 196.0 and "196" are all the token "196".
        optional: Columns, numeric unless they are among the categorical ones, that are left out
            when the table does not have them.
        order_by: Column of numbers or ISO dates to sort the rows by, the oldest first; rows of one
            time stay in the table's order.

    Returns:
        The columns in the order named, float32 the numeric ones, `str` the categorical ones; a
        missing cell is NaN in both.

    Raises:
        DataError: The table is unreadable or empty, lacks columns, or has cells that are not what
            they should be. All of it is told in one message, a line each; of the cells, the first
            wrong one of each column.
    """
    if order_by is None and (stray := [source.name for source in table if not source.ordered]):
        logger.warning(
            "%s: its rows may come in another order each time, and another part of them is held "
            "out then; name a --time-column, or order a --query by columns that tell rows apart",
            stray[0],
        )
    frame, problems = _read(table, numeric, categorical, optional, order_by)
    if problems:
        raise DataError("\n".join(problems))
    return frame


def _read(
    table: Table,
    numeric: Sequence[str],
    categorical: Sequence[str],
    optional: Sequence[str],
    order_by: str | None,
) -> tuple[pd.DataFrame, list[str]]:
    """The frame of :func:`read_table`, of the columns that are right, and what is wrong."""
    named = dict.fromkeys([*numeric, *optional, *categorical])
    wanted: list[str] = []
    numbers: dict[str, list[Numbers]] = defaultdict(list)
    tokens: dict[str, list[pa.Array]] = defaultdict(list)
    times: list[pa.Array] = []
    rows = _RowNames()
    problems: list[str] = []
    wrong_cells: dict[str, str] = {}
    with tqdm(unit="row", unit_scale=True, delay=1, disable=None, leave=False) as bar:
        for source in table:
            try:
                available = source.columns()
                wanted = wanted or [n for n in named if n in available or n not in optional]
                expected = list(dict.fromkeys([*wanted, *([order_by] if order_by else [])]))
                if problem := _column_problem(expected, available):
                    problems.append(f"{source.name}: {problem}")
                read = [name for name in expected if available.count(name) == 1]
                for batch in source.batches(read) if read else ():
                    first = rows.total
                    rows.add(source, len(batch))
                    for name in read:
                        if name in categorical:
                            tokens[name].append(_texts(batch.column(name)))
                        elif name in named:
                            values, wrong = _numbers(batch.column(name))
                            numbers[name].append(values)
                            if wrong:
                                place = rows.cell(first + wrong[0], name)
                                wrong_cells.setdefault(name, f"{place}: {wrong[1]}")
                        if name == order_by:
                            times.append(_texts(batch.column(name)))
                    bar.update(len(batch))
            except (pa.ArrowException, OSError, UnicodeError) as error:
                raise DataError(f"{source.name}: cannot be read: {error}") from error
    if not problems and not rows.total:
        problems.append(f"{table[0].name}: has no rows, only column names")
    if problems:
        return pd.DataFrame(), [*problems, *wrong_cells.values()]
    problems += wrong_cells.values()
    frame = pd.DataFrame(
        {
            name: _tokens(tokens.pop(name)) if name in tokens else np.concatenate(numbers.pop(name))
            for name in wanted
            if name not in wrong_cells
        }
    )
    if order_by:
        order, wrong = _time_order(_tokens(times))
        if wrong:
            problems.append(f"{rows.cell(wrong[0], order_by)}: {wrong[1]}")
        frame = frame.iloc[order].reset_index(drop=True)
    return frame, problems


def load_splits(
    data: DataSet,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    seed: int = 0,
    time_column: str | None = None,
    check: Callable[[Splits], Iterable[str]] = lambda _: (),
) -> Splits:
    """Read a data set as train, valid and test split.

    Args:
        data: With a table for each, or one that is cut 80/10/10.
        numeric: As for `read_table`.
        categorical: As for `read_table`.
        optional: As for `read_table`.
        seed: Seed of the shuffle before one table is cut.
        time_column: Numbers or ISO dates to sort one table by instead; the latest rows are the
            test. Without one, a seeded shuffle; where the rows of the table have no order, of
            their contents, so that it is the same each time.
        check: What else is wrong with the splits, of which columns with wrong cells are left out.

    Returns:
        The splits, each with the columns that `read_table` gives.

    Raises:
        DataError: As `read_table`, with what ``check`` says; or one table is too short to cut.
    """
    columns = numeric, categorical, optional
    if set(data.tables) == set(SPLIT_NAMES):
        read = [_read(data.tables[split], *columns, None) for split in SPLIT_NAMES]
        problems = [problem for _, found in read for problem in found]
        splits = Splits(*(frame for frame, _ in read))
    else:
        frame, problems = _read(data.table, *columns, time_column)
        if len(frame) < 10:
            short = f"{data.name}: expected 10 rows or more to cut 80/10/10, got {len(frame)}"
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
    """Find targets that no model could learn or be measured on.

    Args:
        splits: The data; every split is checked.
        binary: Targets of classification: 0 or 1, both present.
        nonnegative: Targets of regression: 0 or more, not all 0.

    Returns:
        Each split and column that is wrong, with the first wrong value; columns that are not there
        are passed over.
    """
    return [
        f"{split} split, column {name}: {problem}"
        for split, frame in vars(splits).items()
        for name in (*binary, *nonnegative)
        if name in frame and (problem := _label_problem(frame[name], name in binary))
    ]


def _label_problem(target: pd.Series[float], binary: bool) -> str:
    if target.hasnans:
        return f"{target.isna().sum()} of {len(target)} rows are empty"
    allowed = target.isin((0, 1)) if binary else target >= 0
    if not allowed.all():
        expected = "0 or 1" if binary else "0 or more"
        return f"expected {expected}, got {target[~allowed].iloc[0]:g}"
    if binary and target.nunique() == 1:
        return f"expected both 0 and 1, got only {target.iloc[0]:g}"
    return "" if target.any() else "expected some value above 0, got only 0"


def row_hashes(frame: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """A hash of each row's cells, [rows], the same in every run."""
    starts = range(0, len(frame), _HASHED_ROWS)
    parts = [
        pd.util.hash_pandas_object(frame.iloc[i : i + _HASHED_ROWS], index=False) for i in starts
    ]
    return np.concatenate([part.to_numpy() for part in parts])


class _RowNames:
    """Which row of which source is the n-th that was read."""

    def __init__(self) -> None:
        self.total = 0
        self._starts: list[tuple[int, Source]] = []

    def add(self, source: Source, n_rows: int) -> None:
        """Count rows."""
        if not self._starts or self._starts[-1][1] is not source:
            self._starts.append((self.total, source))
        self.total += n_rows

    def cell(self, index: int, column: str) -> str:
        """Tell a cell, such as ``clicks.csv: row 7, column age``."""
        start, source = next(found for found in reversed(self._starts) if found[0] <= index)
        return f"{source.name}: row {index - start + source.first_row}, column {column}"


def _column_problem(wanted: Sequence[str], available: Sequence[str]) -> str:
    if missing := [name for name in wanted if name not in available]:
        unused = [name for name in available if name not in wanted]
        near = [difflib.get_close_matches(name, unused, n=1) for name in missing]
        hints = [
            f"{name} (did you mean {match[0]}?)" if match else name
            for name, match in zip(missing, near, strict=True)
        ]
        return f"missing column {', '.join(hints)}; it has {', '.join(available)}"
    repeated = [name for name in wanted if available.count(name) > 1]
    return "; ".join(f"column {name} is there {available.count(name)} times" for name in repeated)


def _numbers(column: pa.Array) -> tuple[Numbers, tuple[int, str] | None]:
    """The numbers of a column, and the first cell that is none, with what is wrong with it."""
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_type(column.type) for is_type in is_number):
        column = column.cast(pa.string())
    present = column.is_valid().to_numpy(zero_copy_only=False)
    try:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        junk = np.zeros(len(values), dtype=np.bool_)
    except pa.ArrowInvalid:  # some text is no number, or has spaces around it
        text = column.to_pandas()
        values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
        junk = (
            present & np.isnan(values) & ~text.str.strip().str.lower().isin(_NO_NUMBER).to_numpy()
        )
    wrong = junk | (np.abs(values) > _FLOAT32_MAX)
    if not wrong.any():
        return values.astype(np.float32), None
    index = int(wrong.argmax())
    expected = "a number" if junk[index] else "a finite float32 number"
    return np.zeros(len(values), np.float32), (
        index,
        f'expected {expected}, got "{column[index].as_py()}"',
    )


def _texts(column: pa.Array) -> pa.Array:
    if not pa.types.is_floating(column.type):
        texts = column.cast(pa.large_string())
        if pa.types.is_decimal(column.type) and column.type.scale > 0:
            texts = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
        return texts
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column).dictionary_encode()
    # Through text, so that a float32 says 0.1; but arrow says 1e+11 of an id.
    floats = column.dictionary.cast(pa.string()).cast(pa.float64()).to_pylist()
    return pa.array(map(canonical_token, floats), pa.large_string()).take(column.indices)


def _tokens(parts: Sequence[pa.Array]) -> pd.Series[str]:
    tokens = pa.chunked_array(parts, pa.large_string())
    if pc.any(pc.ends_with(tokens, ".0")).as_py():
        # As handlers.schema.canonical_token does.
        tokens = pc.replace_substring_regex(tokens, f"^{ID_AS_FLOAT}$", r"\1")
    series: pd.Series[str] = tokens.to_pandas()
    return series


def _time_order(times: pd.Series[Any]) -> tuple[npt.NDArray[np.intp], tuple[int, str] | None]:
    """The rows in the order of their times, and the first time that is none, with what is wrong."""
    values, expected = pd.to_numeric(times, errors="coerce"), "a number, as in the first row"
    if np.isnan(values[0]):
        values = pd.to_datetime(times, format="ISO8601", errors="coerce", utc=True)
        expected = "an ISO 8601 date"
    wrong = None
    if values.hasnans:
        index = int(values.isna().argmax())
        got = "an empty cell" if pd.isna(times[index]) else f'"{times[index]}"'
        wrong = index, f"expected {expected}, got {got}"
    return np.argsort(values.to_numpy(), kind="stable"), wrong
