"""Read the first rows of a data set, all columns with the types that they have in the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from training.data.nested import is_list
from training.data.sources import DataError, DataSet, Source

SAMPLE_ROWS = 200_000
# Files to read a part of, where the data has more.
MAX_SOURCES = 10


class Rows(NamedTuple):
    """The first rows of a data set.

    Attributes:
        cells: Cells by column, all of the same length.
        n: Number of rows, 1 or more.
        is_all: Whether these are all rows of the data.
    """

    cells: dict[str, pa.Array]
    n: int
    is_all: bool


def first_rows(data: DataSet, max_rows: int = SAMPLE_ROWS) -> Rows:
    """Read the first rows of the train split or the only table.

    Args:
        data: Data set. Of a table of many files, ``MAX_SOURCES`` at equal distances are read, the
            same number of rows from each.
        max_rows: Number of rows to read at most.

    Raises:
        DataError: If the data cannot be read or has no rows, or a column's name repeats.
    """
    table = data.tables.get("train", data.table)
    picks = np.linspace(0, len(table) - 1, min(len(table), MAX_SOURCES)).round().astype(int)
    parts: dict[str, list[pa.Array]] = {}
    count, is_all = 0, len(picks) == len(table)
    for source in (table[i] for i in picks):
        n, ended = _read(source, -(-max_rows // len(picks)), parts, count)
        count, is_all = count + n, is_all and ended
    if not count:
        raise DataError(f"{table[0].name}: has no rows, only column names")
    return Rows({name: _join(arrays, count) for name, arrays in parts.items()}, count, is_all)


def _read(
    source: Source, max_rows: int, parts: dict[str, list[pa.Array]], before: int
) -> tuple[int, bool]:
    """Add the first rows of a source to ``parts``; return how many, and whether that is all."""
    rows, is_all = 0, True
    try:
        names = source.columns()
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise DataError(f"{source.name}: expected each column once, got {repeated[0]} again")
        for batch in source.batches(names) if names else ():
            if rows + len(batch) > max_rows:
                batch, is_all = batch.slice(0, max_rows - rows), False
            for name in names:
                arrays = parts.setdefault(name, [])
                if gap := before + rows - sum(map(len, arrays)):  # not in an earlier file
                    arrays.append(pa.nulls(gap))
                arrays.append(batch.column(name))
            rows += len(batch)
            if not is_all:
                break
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(f"{source.name}: cannot be read: {error}") from error
    return rows, is_all


def _join(arrays: Sequence[pa.Array], rows: int) -> pa.Array:
    """Join batches, whose types may differ; as text if nothing else fits all of them."""
    arrays = [*arrays, pa.nulls(rows - sum(map(len, arrays)))]  # not in a later file
    arrays = [a.dictionary_decode() if pa.types.is_dictionary(a.type) else a for a in arrays]
    kinds = {a.type for a in arrays if not pa.types.is_null(a.type)}
    text = pa.large_string()
    if len(kinds) == 1:
        kind = kinds.pop()
    else:
        kind = pa.list_(text) if kinds and all(map(is_list, kinds)) else text
    return pa.concat_arrays([_cast(a, kind) for a in arrays])


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return array.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        texts = [None if value is None else str(value) for value in array.to_pylist()]
        return pa.array(texts, kind)
