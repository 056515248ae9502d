"""Read the vectors of a category from a file.

Shapes: N tokens, M components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data import files
from training.data.cells import WrongCell, to_numbers, to_tokens
from training.data.nested import is_list
from training.data.sources import DataError, Source


class TokenVectors(NamedTuple):
    """Vectors of tokens.

    Attributes:
        tokens: N distinct tokens.
        vectors: float32 [N, M].
    """

    tokens: list[str]
    vectors: npt.NDArray[np.float32]


def read_vectors(path: str, category: str) -> TokenVectors:
    """Read a file with a row for each token: the token, and its vector as one list or as numbers.

    Args:
        path: A file that training could read; the column of the token has the name of the category,
            or is the first one.
        category: Name of the category.

    Raises:
        DataError: If the file cannot be used; the message says where and why.
    """
    tokens: list[str | None] = []
    parts = []
    for source in files.find(path).table:
        try:
            names = source.columns()
            key = category if category in names else names[0]
            columns = [name for name in names if name != key]
            for batch in source.batches(names):
                first = source.first_row + len(tokens)
                found, wrong = to_tokens(batch.column(key))
                _check(source, first, key, wrong or _first_null(found))
                tokens += found.to_pylist()
                parts.append(np.column_stack(list(_components(source, first, batch, columns))))
        except (pa.ArrowException, UnicodeError) as error:
            raise DataError(f"{source.name}: cannot be read: {error}") from error
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) != 1:
        got = f"vectors of {' and '.join(map(str, widths))}" if widths else "no rows"
        raise DataError(f"{path}: expected vectors of one length, got {got}")
    if len(set(tokens)) < len(tokens):
        repeated = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise DataError(f"{path}: expected one vector for each {category}, got two for {repeated}")
    return TokenVectors([str(token) for token in tokens], np.concatenate(parts))


def _components(
    source: Source, first: int, batch: pa.RecordBatch, columns: Sequence[str]
) -> Iterator[Any]:
    """Yield the components of the vectors, each float32 [rows] or [rows, components]."""
    if not columns:
        raise DataError(f"{source.name}: expected a token and its vector in each row, got one cell")
    for name in columns:
        column = batch.column(name)
        lengths: set[int] = set()
        if is_list(column.type):
            lengths = set(pc.unique(pc.list_value_length(column)).to_pylist())
            if len(lengths) != 1 or None in lengths:
                got = ", ".join(map(str, sorted(length or 0 for length in lengths)[:5]))
                raise DataError(
                    f"{source.name}: column {name}: expected lists of one length, got {got}"
                )
            column = pc.list_flatten(column)
        [per_row] = lengths or {1}
        values, wrong = to_numbers(column)
        if wrong is None and np.isnan(values).any():
            wrong = WrongCell(int(np.isnan(values).argmax()), "expected a number, got none")
        if wrong:
            wrong = wrong._replace(row=wrong.row // per_row)
        _check(source, first, name, wrong)
        yield values.reshape(-1, per_row)


def _first_null(tokens: pa.Array) -> WrongCell | None:
    if not tokens.null_count:
        return None
    return WrongCell(pc.index(tokens.is_null(), True).as_py(), "expected a token, got none")


def _check(source: Source, first: int, column: str, wrong: WrongCell | None) -> None:
    if wrong:
        raise DataError(f"{source.name}: row {first + wrong.row}, column {column}: {wrong.problem}")
