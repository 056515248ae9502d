"""Convert Arrow columns to float32 numbers, text tokens and an order by time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from handlers.schema import ID_AS_FLOAT, canonical_token

Numbers = npt.NDArray[np.float32]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Words for a missing number, such as NaN and NA.
_MISSING_WORDS = {word.lower() for word in pyarrow.csv.ConvertOptions().null_values if word}


class WrongCell(NamedTuple):
    """A cell that cannot be converted.

    Attributes:
        row: Position in the column.
        problem: What was expected and what was found.
    """

    row: int
    problem: str


def to_numbers(column: pa.Array) -> tuple[Numbers, WrongCell | None]:
    """Convert a column to numbers, NaN where a cell is missing.

    Returns:
        The numbers, float32 [rows], and the first cell that is not a number, if there is one.
    """
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    if not any(is_type(column.type) for is_type in is_number):
        column = column.cast(pa.string())
    present = column.is_valid().to_numpy(zero_copy_only=False)
    try:
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        junk = np.zeros(len(values), dtype=np.bool_)
    except pa.ArrowInvalid:  # a text is not a number, or has spaces around it
        text = column.to_pandas()
        values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
        is_word = text.str.strip().str.lower().isin(_MISSING_WORDS).to_numpy()
        junk = present & np.isnan(values) & ~is_word
    wrong = junk | (np.abs(values) > _FLOAT32_MAX)
    if not wrong.any():
        return values.astype(np.float32), None
    index = int(wrong.argmax())
    expected = "a number" if junk[index] else "a finite float32 number"
    problem = f'expected {expected}, got "{column[index].as_py()}"'
    return np.zeros(len(values), np.float32), WrongCell(index, problem)


def to_texts(column: pa.Array) -> pa.Array:
    """Convert a column to texts, null where a cell is missing."""
    if not pa.types.is_floating(column.type):
        texts = column.cast(pa.large_string())
        if pa.types.is_decimal(column.type) and column.type.scale > 0:
            texts = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
        return texts
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column).dictionary_encode()
    # Through text, so that the float32 0.1 reads 0.1; Python then avoids Arrow's 1e+11 for an id.
    floats = column.dictionary.cast(pa.string()).cast(pa.float64()).to_pylist()
    return pa.array(map(canonical_token, floats), pa.large_string()).take(column.indices)


def to_tokens(texts: Sequence[pa.Array]) -> pd.Series[str]:
    """Join batches of :func:`to_texts` into a column of canonical tokens, such as 7 for 7.0."""
    tokens = pa.chunked_array(texts, pa.large_string())
    if pc.any(pc.ends_with(tokens, ".0")).as_py():
        # The same rule as handlers.schema.canonical_token.
        tokens = pc.replace_substring_regex(tokens, f"^{ID_AS_FLOAT}$", r"\1")
    series: pd.Series[str] = tokens.to_pandas()
    return series


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
