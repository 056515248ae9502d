"""Convert Arrow columns to float32 numbers, text tokens and an order by time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from handlers.errors import RowError
from handlers.times import Seconds, from_local, to_seconds
from handlers.values import LIST_SEPARATOR, TIME_PATTERN, LostDigitsError, to_text, to_token
from training.data.nested import is_list

Numbers = npt.NDArray[np.float32]

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Words for a missing number, such as NaN and NA.
MISSING_WORDS = {word.lower() for word in pyarrow.csv.ConvertOptions().null_values if word}
# Texts, without blanks at their ends, that may not be their own token.
_RESPELLED = (
    rf"^(?:-0|-?[0-9]*\.[0-9]*(?:[eE][+-]?[0-9]+)?|-?[0-9][eE][+-]?[0-9]+|{TIME_PATTERN}"
    r"|(?i:true|false))?$"
)


class WrongCell(NamedTuple):
    """A cell that cannot be converted.

    Attributes:
        row: Position in the column.
        problem: What was expected and what was found.
    """

    row: int
    problem: str


# Converts a column to a NumPy array or an Arrow array [rows], and finds the first wrong cell.
Reader = Callable[[pa.Array], tuple[Any, WrongCell | None]]


def to_numbers(column: pa.Array) -> tuple[Numbers, WrongCell | None]:
    """Convert a column to numbers, NaN where a cell is missing.

    Returns:
        The numbers, float32 [rows], and the first cell that is not a number, if there is one.
    """
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_type(column.type) for is_type in is_number):
        column = column.cast(pa.string())
    present = column.is_valid().to_numpy(zero_copy_only=False)
    try:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        junk = np.zeros(len(values), dtype=np.bool_)
    except pa.ArrowInvalid:  # a text is not a number, or has spaces around it
        text = _without_booleans(column).to_pandas()
        values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
        is_word = text.str.strip().str.lower().isin(MISSING_WORDS).to_numpy()
        junk = present & np.isnan(values) & ~is_word
    wrong = junk | (np.abs(values) > _FLOAT32_MAX)
    if not wrong.any():
        return values.astype(np.float32), None
    index = int(wrong.argmax())
    expected = "a number" if junk[index] else "a finite float32 number"
    problem = f'expected {expected}, got "{column[index].as_py()}"'
    return np.zeros(len(values), np.float32), WrongCell(index, problem)


def _without_booleans(column: pa.Array) -> pa.Array:
    """Replace the texts true and false, in any case, by 1 and 0."""
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    column = pc.if_else(pc.equal(lower, "true"), "1", column)
    return pc.if_else(pc.equal(lower, "false"), "0", column)


def to_tokens(column: pa.Array, *, are_ids: bool = True) -> tuple[pa.Array, WrongCell | None]:
    """Convert a column to tokens as :func:`handlers.values.to_token` spells them.

    Args:
        column: Cells of any type, [rows].
        are_ids: Whether a float of 2^53 or more is a wrong cell; else it is a text.

    Returns:
        The tokens, large_string [rows], null where a cell is missing; and the first cell that has
        lost digits, if there is one.
    """
    texts = to_texts(column)
    doubtful = pc.match_substring_regex(texts, _RESPELLED)
    if not pc.any(doubtful).as_py():
        return texts, None
    found = texts.filter(doubtful).dictionary_encode()
    tokens, lost = [], []
    for text in found.dictionary.to_pylist():
        tokens.append(to_text(text))
        try:
            to_token(text)
        except LostDigitsError:
            lost.append(text)
    if lost and are_ids:
        is_lost = pc.is_in(texts, pa.array(lost, pa.large_string()))
        n, row = pc.sum(is_lost).as_py(), pc.index(is_lost, True).as_py()
        problem = (
            f"expected ids, got {texts[row]}: a float of 2^53 or more has lost digits, like {n} "
            f"of the {len(texts)} cells read with it; write the column as int64 or as text"
        )
        return texts, WrongCell(row, problem)
    respelled = pa.array(tokens, pa.large_string()).take(found.indices)
    return pc.replace_with_mask(texts, pc.fill_null(doubtful, False), respelled), None


def to_free_texts(column: pa.Array) -> tuple[pa.Array, WrongCell | None]:
    """Convert a column that holds no ids to tokens; a float of 2^53 or more is text."""
    return to_tokens(column, are_ids=False)


def to_texts(column: pa.Array) -> pa.Array:
    """Convert a column to texts without blanks at their ends, large_string [rows]."""
    if pa.types.is_floating(column.type):
        is_nan = pc.is_nan(column)
        column = pc.if_else(is_nan, pa.scalar(None, column.type), column).dictionary_encode()
        # Through text, so that the float32 0.1 reads 0.1; with Python's exponents, not Arrow's.
        floats = column.dictionary.cast(pa.string()).cast(pa.float64()).to_pylist()
        return pa.array(map(str, floats), pa.large_string()).take(column.indices)
    texts = column.cast(pa.large_string())
    if pa.types.is_decimal(column.type) and column.type.scale > 0:
        texts = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
    return pc.utf8_trim_whitespace(texts)


@dataclass(frozen=True)
class ListReader:
    """Reads lists of tokens.

    Attributes:
        separator: Splits texts, in lists too; empty if a text is a single token.
    """

    separator: str = ""

    def __call__(self, column: pa.Array) -> tuple[pa.Array, WrongCell | None]:
        """Read a column of lists, of text or of single values.

        Returns:
            The tokens of each cell joined by :data:`handlers.values.LIST_SEPARATOR`, large_string
            [rows], null for an empty list; and the first cell that is wrong, if there is one.
        """
        if not is_list(column.type):
            if not self.separator and _is_text(column.type):
                texts = to_texts(column)
                return texts, _first_text(texts)
            column = pa.LargeListArray.from_arrays(np.arange(len(column) + 1), column)
        texts, rows = to_texts(pc.list_flatten(column)), pc.list_parent_indices(column)
        if self.separator:
            parts = pc.split_pattern(texts, self.separator)
            texts, rows = pc.list_flatten(parts), rows.take(pc.list_parent_indices(parts))
        tokens, wrong = to_tokens(texts)
        if wrong is None and (row := pc.index(_has_joint(tokens), True).as_py()) >= 0:
            wrong = WrongCell(row, f"expected values without U+001F, got {tokens[row].as_py()!r}")
        if wrong:
            return tokens, WrongCell(rows[wrong.row].as_py(), wrong.problem)
        present = tokens.is_valid()
        lengths = np.bincount(rows.filter(present), minlength=len(column))
        ends = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        lists = pa.ListArray.from_arrays(ends, tokens.drop_null())
        joined = pc.binary_join(lists, pa.scalar(LIST_SEPARATOR, tokens.type))
        return pc.if_else(pa.array(lengths > 0), joined, pa.scalar(None, joined.type)), None


def _has_joint(tokens: pa.Array) -> pa.Array:
    return pc.match_substring(tokens, LIST_SEPARATOR)


def _is_text(column_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    is_single = (*is_number, pa.types.is_boolean, pa.types.is_temporal, pa.types.is_null)
    return not any(is_type(column_type) for is_type in is_single)


def _first_text(texts: pa.Array) -> WrongCell | None:
    """Describe the first text, which stands where a list is expected."""
    present = texts.is_valid()
    if not pc.any(present).as_py():
        return None
    row = pc.index(present, True).as_py()
    problem = f'expected a list, got the text "{texts[row]}"; name its separator, as in --multi'
    return WrongCell(row, f"{problem} tags:|")


@dataclass(frozen=True)
class TimeReader:
    """Reads times.

    Attributes:
        zone: Time zone of those without an offset.
    """

    zone: tzinfo

    def __call__(self, column: pa.Array) -> tuple[Seconds, WrongCell | None]:
        """Read a column of numbers, ISO 8601 texts, timestamps or dates.

        Returns:
            UTC seconds since 1970, float64 [rows], NaN for missing; and the first cell that is not
            a time, if there is one.
        """
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            is_local = getattr(column.type, "tz", None) is None
            seconds = _seconds(column)
            return from_local(seconds, np.full(len(seconds), is_local), self.zone), None
        distinct = to_texts(column).dictionary_encode()
        index = distinct.indices.fill_null(len(distinct.dictionary))
        try:
            known = to_seconds(distinct.dictionary.to_pylist(), self.zone, "")
        except RowError as error:
            row = pc.index(distinct.indices, error.row).as_py()
            return np.zeros(len(column)), WrongCell(row, error.problem)
        return np.append(known, np.nan)[index.to_numpy(zero_copy_only=False)], None


def _seconds(column: pa.Array) -> Seconds:
    """Convert timestamps or dates to seconds since 1970, float64 [rows]; NaN for missing."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.timestamp("s"))
    per_second = _PER_SECOND[getattr(column.type, "unit", "ms")]  # date64 has no unit
    numbers = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return np.where(column.is_valid().to_numpy(zero_copy_only=False), numbers / per_second, np.nan)


def time_order(times: pd.Series[Any]) -> tuple[npt.NDArray[np.intp], WrongCell | None]:
    """Sort times, which are numbers or ISO 8601 dates; equal ones keep their order.

    Returns:
        The rows, oldest first, and the first cell that is not a time, if there is one.
    """
    values, expected = pd.to_numeric(times, errors="coerce"), "a number, as in the first row"
    if np.isnan(values[0]):
        values = pd.to_datetime(times, format="ISO8601", errors="coerce", utc=True)
        expected = "an ISO 8601 date"
    wrong = None
    if values.hasnans:
        index = int(values.isna().argmax())
        got = "an empty cell" if pd.isna(times[index]) else f'"{times[index]}"'
        wrong = WrongCell(index, f"expected {expected}, got {got}")
    return np.argsort(values.to_numpy(), kind="stable"), wrong
