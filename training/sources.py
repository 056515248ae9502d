"""Reading data: a CSV or Parquet file, or a folder of three, becomes checked data frames.

All that can be wrong with a file is found here, before training starts, and told with the file, the
row and the column. Numbers come out as float64, categories as text tokens, missing cells as NaN.
"""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

SPLIT_NAMES = ("train", "valid", "test")
SUFFIXES = (".csv", ".csv.gz", ".parquet")

# With several threads, an error does not say in which row it is.
_ONE_THREAD = pyarrow.csv.ReadOptions(use_threads=False)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class DataError(ValueError):
    """The data cannot be trained on; the message says where, what was expected and what came."""


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set: fit on train, select on valid, report test once."""

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame


def read_table(
    path: Path,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> pd.DataFrame:
    """Read the named columns of one file.

    Args:
        path: A .csv, .csv.gz or .parquet file.
        numeric: Columns to read as numbers.
        categorical: Columns to read as tokens; 196, 196.0 and "196" are all the token "196".
        optional: Columns, numeric unless they are among the categorical ones, that are left out
            when the file does not have them.

    Returns:
        The columns in the order named, float64 the numeric ones, `str` the categorical ones; a
        missing cell is NaN in both.

    Raises:
        DataError: The file is absent, unreadable or empty, lacks a column, or has a numeric cell
            that is not a finite float32 number.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        available = _column_names(path)
        named = dict.fromkeys([*numeric, *optional, *categorical])
        wanted = [name for name in named if name in available or name not in optional]
        _check_columns(path, wanted, available)
        columns = _read_columns(path, wanted)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if columns[wanted[0]].empty:
        raise DataError(f"{path}: has no rows, only column names")
    return pd.DataFrame(
        {
            name: _tokens(column) if name in categorical else _numbers(path, name, column)
            for name, column in columns.items()
        }
    )


def load_splits(
    data_path: Path,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    seed: int = 0,
    time_column: str | None = None,
) -> Splits:
    """Read a data set as train, valid and test split.

    Args:
        data_path: A folder with a file each for train, valid and test, or one file that is cut
            80/10/10.
        numeric: As for `read_table`.
        categorical: As for `read_table`.
        optional: As for `read_table`.
        seed: Seed of the shuffle before one file is cut.
        time_column: Numbers or ISO dates to sort one file by instead; the latest rows are the test.

    Returns:
        The splits, each with the columns that `read_table` gives.

    Raises:
        DataError: As `read_table`; or a split's file is absent, or one file is too short to cut.
    """
    if data_path.is_dir():
        paths = [_split_file(data_path, split) for split in SPLIT_NAMES]
        return Splits(*(read_table(path, numeric, categorical, optional) for path in paths))

    table = read_table(data_path, numeric, categorical, optional)
    if len(table) < 10:
        raise DataError(f"{data_path}: expected 10 rows or more to cut 80/10/10, got {len(table)}")
    if time_column is None:
        table = table.sample(frac=1, random_state=seed)
    else:
        table = table.iloc[time_order(data_path, time_column)]
    table = table.reset_index(drop=True)
    first_valid, first_test = len(table) * 8 // 10, len(table) * 9 // 10
    return Splits(table[:first_valid], table[first_valid:first_test], table[first_test:])


def time_order(path: Path, name: str) -> npt.NDArray[np.intp]:
    """The rows of a file from the oldest to the latest, equal ones in the file's order.

    Args:
        path: As for `read_table`.
        name: Column of numbers or ISO dates.

    Returns:
        Row numbers, [rows].

    Raises:
        DataError: A cell of the column is neither.
    """
    values = read_table(path, (), (name,))[name]
    times, expected = pd.to_numeric(values, errors="coerce"), "a number, as in the first row"
    if np.isnan(times[0]):
        times = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
        expected = "an ISO 8601 date"
    if times.hasnans:
        index = int(times.isna().argmax())
        raise DataError(f'{_cell(path, index, name)}: expected {expected}, got "{values[index]}"')
    return np.argsort(times.to_numpy(), kind="stable")


def check_labels(splits: Splits, binary: Sequence[str], nonnegative: Sequence[str] = ()) -> None:
    """Refuse targets that no model could learn or be measured on.

    Args:
        splits: The data; every split is checked.
        binary: Targets of classification: 0 or 1, both present.
        nonnegative: Targets of regression: 0 or more, not all 0.

    Raises:
        DataError: Names the split, the column and the first wrong value.
    """
    for split, table in vars(splits).items():
        for name in (*binary, *nonnegative):
            target = table[name]
            where = f"{split} split, column {name}"
            if target.hasnans:
                raise DataError(f"{where}: {target.isna().sum()} of {len(target)} rows are empty")
            allowed = target.isin((0, 1)) if name in binary else target >= 0
            if not allowed.all():
                expected = "0 or 1" if name in binary else "0 or more"
                raise DataError(f"{where}: expected {expected}, got {target[~allowed].iloc[0]:g}")
            if name in binary and target.nunique() == 1:
                raise DataError(f"{where}: expected both 0 and 1, got only {target.iloc[0]:g}")
            if not target.any():
                raise DataError(f"{where}: expected some value above 0, got only 0")


def data_sha256(data_path: Path) -> str:
    """Hash the bytes of a data file, or of the three files of a folder of splits.

    Args:
        data_path: What `load_splits` was given.

    Returns:
        The sha256, as 64 hexadecimal digits.

    Raises:
        DataError: A split's file is absent.
    """
    if data_path.is_dir():
        digests = [data_sha256(_split_file(data_path, split)) for split in SPLIT_NAMES]
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    with data_path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split_file(folder: Path, split: str) -> Path:
    names = [f"{split}{suffix}" for suffix in SUFFIXES]
    found = [name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        got = " and ".join(found) or "none"
        raise DataError(f"{folder}: expected one of {', '.join(names)}, got {got}")
    return folder / found[0]


def _column_names(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    with pyarrow.csv.open_csv(path, read_options=_ONE_THREAD) as reader:
        return list(reader.schema.names)


def _check_columns(path: Path, wanted: Sequence[str], available: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in available]
    if missing:
        unused = [name for name in available if name not in wanted]
        near = [difflib.get_close_matches(name, unused, n=1) for name in missing]
        hints = [
            f"{name} (did you mean {match[0]}?)" if match else name
            for name, match in zip(missing, near, strict=True)
        ]
        raise DataError(f"{path}: missing column {', '.join(hints)}; it has {', '.join(available)}")
    for name in wanted:
        if available.count(name) > 1:
            raise DataError(f"{path}: column {name} is there {available.count(name)} times")


def _read_columns(path: Path, names: Sequence[str]) -> "dict[str, pd.Series[Any]]":
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path, columns=names)
    else:
        # As text: the reader's own conversion would not say in which row a bad number stands.
        table = pyarrow.csv.read_csv(
            path,
            read_options=_ONE_THREAD,
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=names,
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
            ),
        )
    columns = {}
    for name in names:
        column = table[name]
        # Floats stay floats so that NaN stays missing; for the rest, text keeps every digit.
        if not pa.types.is_floating(column.type):
            column = column.cast(pa.string())
        columns[name] = column.to_pandas()
    return columns


def _numbers(path: Path, name: str, column: "pd.Series[Any]") -> "pd.Series[float]":
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    wrong = (numbers.isna() & column.notna()) | (numbers.abs() > _FLOAT32_MAX)
    if wrong.any():
        index = int(wrong.argmax())
        expected = "a number" if np.isnan(numbers[index]) else "a finite float32 number"
        raise DataError(f'{_cell(path, index, name)}: expected {expected}, got "{column[index]}"')
    return numbers


def _tokens(column: "pd.Series[Any]") -> "pd.Series[str]":
    text = column.astype("str")
    # A column of integer ids with a missing cell is often stored as floats: 196.0 is the id 196.
    if text.dropna().str.fullmatch(r"-?\d+\.0").all():
        return text.str.removesuffix(".0")
    return text


def _cell(path: Path, index: int, name: str) -> str:
    row = index + (1 if path.suffix == ".parquet" else 2)  # a CSV's header is its row 1
    return f"{path}: row {row}, column {name}"
