"""Find out what each column of a data set holds, from a sample of its rows.

The rules, in the order in which they apply; blank cells are missing:

- list: a list of Arrow or JSON; or text in which one of ``SEPARATORS`` joins values that other
  cells hold too, so that the parts have at most half as many distinct values as there are parts.
- constant: at most one distinct value.
- boolean: 0 and 1, or true and false in any case.
- time: dates and times of Arrow, or ISO 8601 text; or, if the name has one of ``TIME_WORDS``,
  numbers in the range of epoch times, or days such as 20261125.
- integer id: integers whose name ends in one of ``ID_WORDS`` or ``ENTITIES``, or all of which have
  10 digits or more, as no quantity has. Leading zeros make text of a number: 02134 is a code.
- number: numbers, and words for a missing one such as NaN.
- text: more than half of the cells have a value of their own, and they are of several words or the
  name is not that of an id; too few rows share a value to learn anything about it.
- category: any other text.
- other: what no feature can hold, such as structs, vectors, and text of lists in brackets.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from handlers.values import MAX_EXACT, TIME_PATTERN
from training.data.cells import MISSING_WORDS
from training.data.inspection.columns import (
    Codes,
    Column,
    Inspection,
    Kind,
    Values,
    names_id,
    words,
)
from training.data.inspection.sampling import SAMPLE_ROWS, first_rows
from training.data.nested import is_list
from training.data.sources import DataSet

SEPARATORS = "|;,^"
TIME_WORDS = {
    *("time", "timestamp", "ts", "date", "datetime", "day", "dt"),
    *("at", "created", "updated", "published"),
}
# 1990-01-01 and 2100-01-01 in seconds, and the units in which times are counted.
_EPOCHS = (631_152_000, 4_102_444_800)
_UNITS = (1, 10**3, 10**6, 10**9)
_LEAST_ID_OF_SIZE = 10**9
# Least share of the distinct texts that a separator is in.
_MIN_LISTS = 0.2
# Least share of the distinct texts that have several words.
_MIN_PROSE = 0.5
_BLANK = r"\S\s+\S"
# Numbers that are codes, such as 007 and +49.
_CODE = r"-?0[0-9].*|\+.*"
# Up to so many texts among at least so many distinct numbers are exceptions, such as "unknown".
_MAX_EXCEPTIONS, _MIN_NUMBERS = 3, 20


def inspect(data: DataSet, max_rows: int = SAMPLE_ROWS) -> Inspection:
    """Describe the columns of :func:`training.data.inspection.sampling.first_rows`.

    Raises:
        DataError: If the data cannot be read or has no rows, or a column's name repeats.
    """
    rows = first_rows(data, max_rows)
    columns = [describe(name, cells) for name, cells in rows.cells.items()]
    return Inspection(columns, rows.n, rows.is_all, "train" in data.tables)


def describe(name: str, cells: pa.Array) -> Column:
    """Find out what a column holds."""
    of, types = cells.type, pa.types
    if types.is_null(of):
        return _texts(name, cells.cast(pa.large_string()))
    if is_list(of):
        return _lists(name, cells)
    if types.is_boolean(of):
        return _numbers(name, cells, cells.cast(pa.int8()))
    if types.is_floating(of) or types.is_integer(of) or types.is_decimal(of):
        return _numbers(name, cells, cells)
    if types.is_timestamp(of) or types.is_date(of):
        return _times(name, cells)
    if types.is_string(of) or types.is_large_string(of) or types.is_time(of):
        return _texts(name, cells.cast(pa.large_string()))
    return _opaque(name, "other", 0, cells)


def _opaque(name: str, kind: Kind, distinct: int, cells: pa.Array) -> Column:
    return Column(name, kind, distinct, np.where(_valid(cells), 0, -1), _first(cells))


def _valid(cells: pa.Array) -> npt.NDArray[np.bool_]:
    valid: npt.NDArray[np.bool_] = cells.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _first(cells: pa.Array) -> Any:
    return cells[int(_valid(cells).argmax())].as_py()


def _encode(cells: pa.Array) -> tuple[Codes, pa.Array]:
    """Return the number of each row's value, -1 where it is missing, and the distinct values."""
    encoded = cells.dictionary_encode()
    codes: Codes = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy()
    return codes, encoded.dictionary


def _by_row(values: npt.ArrayLike, codes: Codes) -> Values:
    """Return the value that belongs to each code, NaN for -1."""
    found: Values = np.append(np.asarray(values, np.float64), np.nan)[codes]
    return found


def _lists(name: str, cells: pa.Array) -> Column:
    elements, types = cells.flatten(), pa.types
    fits = (types.is_null, types.is_boolean, types.is_integer, types.is_string)
    if not any(is_type(elements.type) for is_type in (*fits, types.is_large_string)):
        return _opaque(name, "other", 0, cells)
    distinct = len(elements.drop_null().unique())
    texts = pc.binary_join(cells.cast(pa.list_(pa.string())), "\x1f")
    kind: Kind = "list" if distinct > 1 else "constant"
    return Column(name, kind, distinct, _encode(texts)[0], _first(cells))


def _numbers(name: str, cells: pa.Array, numeric: pa.Array) -> Column:
    is_float = pa.types.is_floating(cells.type)
    if is_float:
        # Through text, so that the float32 0.1 reads 0.1.
        cells = cells.cast(pa.string()).cast(pa.float64())
        cells = numeric = pc.if_else(pc.is_nan(cells), pa.scalar(None, pa.float64()), cells)
    codes, distinct = _encode(numeric)
    values = distinct.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return Column(
        name,
        _numeric_kind(name, values),
        len(distinct),
        codes,
        _json_number(_first(cells)),
        _by_row(values, codes),
        inexact=int(np.nansum(_by_row((np.abs(values) > MAX_EXACT) & is_float, codes))),
    )


def _json_number(value: Any) -> Any:
    """Return a number as JSON spells it: 196 for 196.0, and from 2^53 on as text."""
    if value is None or isinstance(value, bool):
        return value
    if not np.isfinite(float(value)):
        return None
    if value != int(value):
        return float(value)
    return int(value) if abs(value) <= MAX_EXACT else str(int(value))


def _numeric_kind(name: str, distinct: Values) -> Kind:
    if len(distinct) <= 1:
        return "constant"
    if set(distinct.tolist()) == {0.0, 1.0}:
        return "boolean"
    if not np.isfinite(distinct).all():
        return "number"
    low, high = _EPOCHS
    is_epoch = any(low * unit <= distinct.min() and distinct.max() < high * unit for unit in _UNITS)
    if (is_epoch or _are_days(distinct)) and not TIME_WORDS.isdisjoint(words(name)):
        return "time"
    is_id = names_id(name) or np.abs(distinct).min() >= _LEAST_ID_OF_SIZE
    return "integer id" if is_id and (distinct == np.floor(distinct)).all() else "number"


def _are_days(values: Values) -> bool:
    """Return whether numbers are days such as 20261125."""
    years, months, days = values // 10_000, values // 100 % 100, values % 100
    ranges = ((years, 1990, 2099), (months, 1, 12), (days, 1, 31))
    return all(bool(((low <= part) & (part <= high)).all()) for part, low, high in ranges)


def _times(name: str, cells: pa.Array) -> Column:
    codes, distinct = _encode(cells)
    times = distinct.cast(pa.timestamp("us", getattr(cells.type, "tz", None)), safe=False)
    first, zone = _first(cells), getattr(cells.type, "tz", None) or ""
    return Column(
        name,
        "time" if len(distinct) > 1 else "constant",
        len(distinct),
        codes,
        None if first is None else first.isoformat(),
        _by_row(_seconds(pd.to_datetime(times.to_pandas(), utc=True)), codes),
        time_zone=zone if "/" in zone else "",
    )


def _seconds(times: pd.Series[Any]) -> Values:
    return np.asarray((times - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), np.float64)


def _texts(name: str, cells: pa.Array) -> Column:
    cells = pc.utf8_trim_whitespace(cells)
    cells = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.large_string()), cells)
    codes, distinct = _encode(cells)
    texts = pd.Series(distinct.to_pylist(), dtype=object).str
    column = Column(name, "category", len(distinct), codes, _first(cells))
    is_word = texts.lower().isin(MISSING_WORDS).to_numpy()
    numbers = pd.to_numeric(texts.strip().mask(is_word), errors="coerce").to_numpy(np.float64)
    is_number = np.isfinite(numbers) & ~texts.fullmatch(_CODE).to_numpy(bool)
    others = distinct.filter(pa.array(~(is_number | is_word))).to_pylist()
    if is_number.any() and not others:
        return _numbers_of_texts(column, distinct, numbers)
    if len(distinct) <= 1:
        return replace(column, kind="constant")
    if set(texts.lower()) == {"true", "false"}:
        truths = _by_row((texts.lower() == "true"), codes)
        return replace(column, kind="boolean", numbers=truths)
    if texts.fullmatch(TIME_PATTERN).all():
        times = pd.to_datetime(texts.strip(), format="ISO8601", utc=True, errors="coerce")
        return replace(column, kind="time", numbers=_by_row(_seconds(times), codes))
    if texts.fullmatch(r"\[.*\]").all():
        return replace(column, kind="other")
    for separator in SEPARATORS:
        if texts.contains(separator, regex=False).mean() >= _MIN_LISTS:
            parts = texts.split(separator, regex=False).explode().str.strip()
            if 2 * parts.nunique() <= len(parts):
                n = parts[parts != ""].nunique()
                return replace(column, kind="list", distinct=n, separator=separator)
    if len(others) <= _MAX_EXCEPTIONS and is_number.sum() >= _MIN_NUMBERS:
        return replace(column, exceptions=tuple(others))
    is_prose = bool(texts.contains(_BLANK).mean() > _MIN_PROSE)
    is_rare = 2 * len(distinct) > column.present.sum() and (is_prose or not names_id(name))
    pair = tuple(distinct.to_pylist()) if len(distinct) == 2 else ()
    return replace(column, kind="text" if is_rare else "category", pair=pair, is_prose=is_prose)


def _numbers_of_texts(column: Column, distinct: pa.Array, numbers: Values) -> Column:
    """Describe texts that are numbers, or words for a missing one, which are NaN in ``numbers``."""
    is_number = ~np.isnan(numbers)
    # The numbers get the codes 0, 1, ... and the words -1.
    codes = np.append(np.where(is_number, is_number.cumsum() - 1, -1), -1)[column.codes]
    is_float = pc.match_substring_regex(distinct, "[.eE]").to_numpy(zero_copy_only=False)
    inexact = _by_row((np.abs(numbers) > MAX_EXACT) & is_float, column.codes)
    first = distinct[int(column.codes[(codes >= 0).argmax()])].as_py()
    return replace(
        column,
        kind=_numeric_kind(column.name, numbers[is_number]),
        distinct=int(is_number.sum()),
        codes=codes,
        first=_json_number(_parse(first)),
        numbers=_by_row(numbers, column.codes),
        inexact=int(np.nansum(inexact)),
    )


def _parse(text: str) -> int | float:
    return int(text) if re.fullmatch("-?[0-9]+", text) else float(text)
