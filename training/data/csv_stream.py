"""CSV as record batches, parsed by Arrow block by block.

Arrow's own streaming reader takes bytes from a Python file in a thread of its own, and may still
hold the file when the interpreter ends, which then hangs or aborts (apache/arrow issue 50482). So
blocks of whole rows are cut here, and Arrow sees nothing but memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.csv

_BLOCK_BYTES = 1 << 20
_MAX_ROW_BYTES = 1 << 24

# A quote within a field that does not start with one is a sign like others. At the end of what has
# been read, a carriage return may be half an end of line.
_FIELD = rb'(?:"(?:[^"]++|"")*+"[^,\r\n]*+|(?!")[^,\r\n]*+)'
_ROW = rb"(?>(?:%b,)*+%b(?:\n|\r\n|\r(?!\Z)))" % (_FIELD, _FIELD)
_ROWS = re.compile(_ROW + b"*+")
_HEADER = re.compile(rb"[\r\n]*+" + _ROW)


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """About so many bytes, and none at the end."""


def csv_columns(file: Readable) -> list[str]:
    """Names in the header.

    Raises:
        pyarrow.ArrowInvalid: There is none.
    """
    header = _header(next(_blocks(file), b""))
    return list(pyarrow.csv.read_csv(pa.BufferReader(header)).column_names)


def csv_batches(
    file: Readable, columns: Sequence[str], names: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream CSV with every cell as text: Arrow would not say in which row a wrong number is.

    Args:
        file: As UTF-8.
        columns: Those to read. A cell is missing when it is empty: NA may be a country.
        names: Of all columns, where the stream has no header; then a quoted cell is never missing.

    Raises:
        pyarrow.ArrowInvalid: It is no CSV; the header, where there is one, counts as a row.
    """
    reading = pyarrow.csv.ReadOptions(use_threads=False, column_names=names)
    # Without a header there may be one column only, of which a missing cell is an empty line.
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=names is None)
    converting = pyarrow.csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=names is None,
    )
    header, n_rows = b"", 0
    for rows in _blocks(file):
        memory = pa.BufferOutputStream()
        memory.write(header)
        memory.write(rows)
        reading.block_size = memory.tell()
        try:
            source = pa.BufferReader(memory.getvalue())
            table = pyarrow.csv.read_csv(source, reading, parsing, converting)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(_renumbered(str(error), n_rows)) from None
        yield from table.to_batches()
        n_rows += table.num_rows
        if names is None and not header:
            header = _header(rows)


def _renumbered(message: str, n_rows_before: int) -> str:
    return re.sub(r"(?<=Row #)\d+", lambda row: str(int(row[0]) + n_rows_before), message)


def _blocks(file: Readable) -> Iterator[bytes]:
    """The stream, cut between rows."""
    rest = b""
    while more := file.read(_BLOCK_BYTES):
        block = rest + more
        only_newlines_end_rows = b'"' not in block and b"\n" in block
        end = block.rfind(b"\n") + 1 if only_newlines_end_rows else _end_of_rows(block)
        if end:
            yield block[:end]
        rest = block[end:]
        if len(rest) > _MAX_ROW_BYTES:
            raise _endless(rest)
    if rest:
        # The last row need not have an end.
        if _end_of_rows(rest + b"\n") <= len(rest):
            raise _endless(rest)
        yield rest


def _end_of_rows(block: bytes) -> int:
    rows = _ROWS.match(block)
    assert rows is not None  # at least of no bytes
    return rows.end()


def _endless(row: bytes) -> pa.ArrowInvalid:
    start = row[:60].decode(errors="replace")
    return pa.ArrowInvalid(f"a row never ends; is a quote not closed? It starts with {start!r}")


def _header(block: bytes) -> bytes:
    found = _HEADER.match(block)
    return found[0] if found else block
