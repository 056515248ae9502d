"""Read a table: record batches from any source become one checked data frame.

Every defect of a table is found here, before training starts, and reported with the source, the row
and the column. Numbers come out as float32, categories as text tokens, missing cells as NaN.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from training.data.cells import ListReader, Reader, time_order, to_numbers, to_texts, to_tokens
from training.data.csv_stream import likely_separator
from training.data.inspection.commands import quote
from training.data.inspection.hints import flag_for
from training.data.nested import LIST_FIX, nested_problem
from training.data.sources import DataError, Source, Table

logger = logging.getLogger(__name__)

Flags = Collection[str]


def read_table(
    table: Table,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    readers: Mapping[str, Reader] = MappingProxyType({}),
    order_by: str | None = None,
    other_flags: Mapping[str, Flags] = MappingProxyType({}),
) -> pd.DataFrame:
    """Read the named columns.

    Args:
        table: Sources of the rows.
        numeric: Columns to read as numbers.
        categorical: Columns to read as tokens; 196, 196.0 and "196" are all the token "196".
        optional: Columns to leave out if the table does not have them. They are numeric unless
            ``categorical`` names them too.
        readers: How to read columns that hold neither numbers nor ids, by name.
        order_by: Column of numbers or ISO dates to sort the rows by, oldest first; rows of equal
            time keep the table's order.
        other_flags: Flags that would read a column as something else, by its name, for messages.

    Returns:
        The columns in the order named: numeric ones as float32, categorical ones as ``str``, others
        as their readers return them; missing cells are NaN in all.

    Raises:
        DataError: If the table is unreadable or empty, lacks columns, or has cells of the wrong
            kind. One message lists all problems, a line each, with the first wrong cell of each
            column.
    """
    if order_by is None and (unordered := [source.name for source in table if not source.ordered]):
        logger.warning(
            "%s: its rows may come in another order in each run, which changes the rows that are "
            "held out; name a --time-column, or order a --query by columns that identify a row",
            unordered[0],
        )
    frame, problems = read_with_problems(
        table, numeric, categorical, optional, order_by, readers=readers, other_flags=other_flags
    )
    if problems:
        raise DataError("\n".join(problems))
    return frame


def read_with_problems(
    table: Table,
    numeric: Sequence[str],
    categorical: Sequence[str] = (),
    optional: Sequence[str] = (),
    order_by: str | None = None,
    *,
    readers: Mapping[str, Reader] = MappingProxyType({}),
    other_flags: Mapping[str, Flags] = MappingProxyType({}),
) -> tuple[pd.DataFrame, list[str]]:
    """Read as :func:`read_table` does, but return the problems instead of raising them.

    Returns:
        The columns without a wrong cell, and one line for each problem.

    Raises:
        DataError: If a source cannot be read at all.
    """
    named = dict.fromkeys([*numeric, *optional, *categorical])
    wanted: list[str] = []
    cells = _Cells(
        dict.fromkeys(named, to_numbers) | dict.fromkeys(categorical, to_tokens) | dict(readers),
        other_flags,
        order_by,
    )
    problems: list[str] = []
    with tqdm(unit="row", unit_scale=True, delay=1, disable=None, leave=False) as bar:
        for source in table:
            try:
                available = source.columns()
                wanted = wanted or [n for n in named if n in available or n not in optional]
                expected = list(dict.fromkeys([*wanted, *([order_by] if order_by else [])]))
                if problem := _column_problem(expected, available):
                    problems.append(f"{source.name}: {problem}")
                readable = [name for name in expected if available.count(name) == 1]
                for batch in source.batches(readable) if readable else ():
                    cells.add(source, batch, readable)
                    bar.update(len(batch))
            except (pa.ArrowException, OSError, UnicodeError) as error:
                raise DataError(f"{source.name}: cannot be read: {error}") from error
    if not problems and not cells.rows.total:
        problems.append(f"{table[0].name}: has no rows, only column names")
    if problems:
        return pd.DataFrame(), [*problems, *cells.wrong.values()]
    return cells.to_frame(wanted)


class _Cells:
    """The cells read so far.

    Attributes:
        rows: Names of the rows, for messages.
        wrong: The first wrong cell of each column that has one, described.
    """

    def __init__(
        self,
        readers: Mapping[str, Reader],
        other_flags: Mapping[str, Flags],
        order_by: str | None,
    ) -> None:
        self.rows = _RowNames()
        self.wrong: dict[str, str] = {}
        self._readers, self._other_flags, self._order_by = readers, other_flags, order_by
        self._columns: dict[str, list[Any]] = defaultdict(list)
        self._times: list[pa.Array] = []

    def add(self, source: Source, batch: pa.RecordBatch, columns: Sequence[str]) -> None:
        """Convert the named columns of a batch."""
        first = self.rows.total
        self.rows.add(source, len(batch))
        for name in columns:
            column = batch.column(name)
            reader = self._readers.get(name)
            flags = self._other_flags.get(name, ())
            is_multi = isinstance(reader, ListReader)
            fix = f"add --multi {quote(name)}" if "--multi" in flags else LIST_FIX
            if problem := nested_problem(column.type, multi=is_multi, list_fix=fix):
                self.wrong.setdefault(name, f"{source.name}: column {name}: {problem}")
                continue
            wrong = None
            if reader:
                values, wrong = reader(column)
                self._columns[name].append(values)
            if wrong and name not in self.wrong:
                cell = self.rows.cell(first + wrong.row, name)
                flag = flag_for(name, column, flags) if reader is to_numbers else ""
                fix = f"; add {flag}" if flag else ""
                self.wrong[name] = f"{cell}: {wrong.problem}{fix}"
            if name == self._order_by:
                self._times.append(to_texts(column))

    def to_frame(self, columns: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
        """Join the batches, which are freed meanwhile, and sort the rows.

        Returns:
            The columns without a wrong cell, and all problems.
        """
        problems = list(self.wrong.values())
        frame = pd.DataFrame(
            {name: _join(self._columns.pop(name)) for name in columns if name not in self.wrong}
        )
        if self._order_by and self._times:
            order, wrong = time_order(_join(self._times))
            if wrong:
                cell = self.rows.cell(wrong.row, self._order_by)
                problems.append(f"{cell}: {wrong.problem}")
            frame = frame.iloc[order].reset_index(drop=True)
        return frame, problems


def _join(batches: Sequence[Any]) -> Any:
    if isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    return pa.chunked_array(batches, pa.large_string()).to_pandas()


class _RowNames:
    """Names the n-th row read: the row of a source."""

    def __init__(self) -> None:
        self.total = 0
        self._starts: list[tuple[int, Source]] = []

    def add(self, source: Source, n_rows: int) -> None:
        """Count rows of a source."""
        if not self._starts or self._starts[-1][1] is not source:
            self._starts.append((self.total, source))
        self.total += n_rows

    def cell(self, index: int, column: str) -> str:
        """Name a cell, such as ``clicks.csv: row 7, column age``."""
        start, source = next(found for found in reversed(self._starts) if found[0] <= index)
        return f"{source.name}: row {index - start + source.first_row}, column {column}"


def _column_problem(wanted: Sequence[str], available: Sequence[str]) -> str:
    """Describe the columns that are missing or repeated, and a fix; empty if all is well."""
    if missing := [name for name in wanted if name not in available]:
        unused = [name for name in available if name not in wanted]
        near = [difflib.get_close_matches(name, unused, n=1) for name in missing]
        hints = [
            f"{name} (did you mean {match[0]}?)" if match else name
            for name, match in zip(missing, near, strict=True)
        ]
        problem = f"missing column {', '.join(hints)}; it has {', '.join(available)}"
        if len(available) == 1 and (separator := likely_separator(available[0], missing)):
            flag = "tab" if separator == "\t" else f"'{separator}'"
            return f"{problem}, a single column; is {flag} the separator? Add --separator {flag}"
        if any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in available):
            problem += "; if that is a row of data, put the names of the columns above it"
        return problem
    repeated = [name for name in wanted if available.count(name) > 1]
    return "; ".join(
        f"column {name} is there {available.count(name)} times; rename or remove one"
        for name in repeated
    )
