"""Stream CSV as record batches, parsed by Arrow block by block.

Arrow's own streaming reader reads a Python file in a thread of its own, which may still hold the
file when the interpreter exits; the exit then hangs or aborts (apache/arrow issue 50482). This
module therefore cuts the stream into blocks of whole rows, and gives Arrow nothing but memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.csv

_BLOCK_BYTES = 1 << 20
_MAX_ROW_BYTES = 1 << 24

# A quote inside an unquoted field is an ordinary character. A carriage return at the end of a block
# may be the first half of a line break. Quantifiers are possessive (++, *+): nothing backtracks.
_FIELD = rb'(?:"(?:[^"]++|"")*+"[^,\r\n]*+|(?!")[^,\r\n]*+)'
_ROW = rb"(?>(?:%b,)*+%b(?:\n|\r\n|\r(?!\Z)))" % (_FIELD, _FIELD)
_ROWS = re.compile(_ROW + b"*+")
_HEADER = re.compile(rb"[\r\n]*+" + _ROW)


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Return about ``size`` bytes, and none at the end."""


def csv_columns(file: Readable) -> list[str]:
    """Read the names in the header, without blanks at their ends.

    Raises:
        pyarrow.ArrowInvalid: If there is no header.
    """
    return [name.strip() for name in _names(_header(next(_blocks(file), b"")))]


def _names(header: bytes) -> list[str]:
    return list(pyarrow.csv.read_csv(pa.BufferReader(header)).column_names)


def csv_batches(
    file: Readable, columns: Sequence[str], names: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream CSV with every cell as text, since Arrow does not report the row of a wrong number.

    Args:
        file: CSV in UTF-8.
        columns: Columns to read, named as :func:`csv_columns` does. Only an empty cell is missing:
            NA may be a country.
        names: Names of all columns if the stream has no header; a quoted cell is then never
            missing.

    Raises:
        pyarrow.ArrowInvalid: If the stream is not CSV. Its row number counts the header.
    """
    reading = pyarrow.csv.ReadOptions(use_threads=False, column_names=names)
    # Without a header, an empty line may be the missing cell of a single column.
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=names is None)
    converting = pyarrow.csv.ConvertOptions(
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=names is None,
    )
    header, n_rows = b"", 0
    for rows in _blocks(file):
        if not converting.column_types:  # the first block, which has the header
            written = {name.strip(): name for name in names or _names(_header(rows))}
            converting.include_columns = [written[name] for name in columns]
            converting.column_types = dict.fromkeys(written.values(), pa.string())
        memory = pa.BufferOutputStream()
        memory.write(header)
        memory.write(rows)
        reading.block_size = memory.tell()
        try:
            source = pa.BufferReader(memory.getvalue())
            table = pyarrow.csv.read_csv(source, reading, parsing, converting)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(_renumbered(str(error), n_rows)) from None
        yield from table.rename_columns(list(columns)).to_batches()
        n_rows += table.num_rows
        if names is None and not header:
            header = _header(rows)


def _renumbered(message: str, n_rows_before: int) -> str:
    return re.sub(r"(?<=Row #)\d+", lambda row: str(int(row[0]) + n_rows_before), message)


def _blocks(file: Readable) -> Iterator[bytes]:
    """Cut the stream between rows."""
    rest = b""
    while more := file.read(_BLOCK_BYTES):
        block = rest + more
        only_newlines_end_rows = b'"' not in block and b"\n" in block
        end = block.rfind(b"\n") + 1 if only_newlines_end_rows else _end_of_rows(block)
        if end:
            yield block[:end]
        rest = block[end:]
        if len(rest) > _MAX_ROW_BYTES:
            raise _unclosed_quote(rest)
    if rest:
        # The last row need not end in a line break.
        if _end_of_rows(rest + b"\n") <= len(rest):
            raise _unclosed_quote(rest)
        yield rest


def _end_of_rows(block: bytes) -> int:
    rows = _ROWS.match(block)
    return rows.end() if rows else 0


def _unclosed_quote(row: bytes) -> pa.ArrowInvalid:
    start = row[:60].decode(errors="replace")
    return pa.ArrowInvalid(f"a row never ends; is a quote not closed? It starts with {start!r}")


def _header(block: bytes) -> bytes:
    found = _HEADER.match(block)
    return found[0] if found else block
