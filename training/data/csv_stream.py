"""Stream CSV as record batches, parsed by Arrow block by block.

Arrow's own streaming reader reads a Python file in a thread of its own, which may still hold the
file when the interpreter exits; the exit then hangs or aborts (apache/arrow issue 50482). This
module therefore cuts the stream into blocks of whole rows, and gives Arrow nothing but memory.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Protocol

import pyarrow as pa
import pyarrow.csv

from training.data.encoding import check_utf8

_BLOCK_BYTES = 1 << 20
_MAX_ROW_BYTES = 1 << 24


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """Return about ``size`` bytes, and none at the end."""


def csv_columns(file: Readable, separator: str = ",") -> list[str]:
    """Read the names in the header, without blanks at their ends.

    Raises:
        pyarrow.ArrowInvalid: If there is no header.
        UnicodeDecodeError: If the header is not UTF-8.
    """
    grammar = _grammar(separator)
    header, _ = _cut_header(next(_blocks(file, grammar, has_header=True), b""), grammar)
    if not header:
        raise pa.ArrowInvalid("it is empty; expected a header with the names of the columns")
    return [name.strip() for name in _names(header, separator)]


def csv_batches(
    file: Readable,
    columns: Sequence[str],
    names: Sequence[str] | None = None,
    separator: str = ",",
) -> Iterator[pa.RecordBatch]:
    """Stream CSV with every cell as text, since Arrow does not report the row of a wrong number.

    Args:
        file: CSV in UTF-8.
        columns: Columns to read, named as :func:`csv_columns` does. Only an empty cell is missing:
            NA may be a country.
        names: Names of all columns if the stream has no header; a quoted cell is then never
            missing.
        separator: Character between two cells. Blanks between it and a quote are skipped.

    Raises:
        pyarrow.ArrowInvalid: If the stream is not CSV. Its row number counts the header.
        UnicodeDecodeError: If a row that is read is not UTF-8.
    """
    grammar = _grammar(separator)
    reading = pyarrow.csv.ReadOptions(use_threads=False, column_names=names)
    # Without a header, an empty line may be the missing cell of a single column.
    parsing = _parsing(separator, ignore_empty_lines=names is None)
    converting = pyarrow.csv.ConvertOptions(
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=names is None,
    )
    first_row = 1 if names else 2
    header, n_rows = b"", 0
    for rows in _blocks(file, grammar, has_header=names is None):
        if not converting.column_types:  # the first block, which has the header
            if names is None:
                header, rows = _cut_header(rows, grammar)
            written = {name.strip(): name for name in names or _names(header, separator)}
            converting.include_columns = [written[name] for name in columns]
            converting.column_types = dict.fromkeys(written.values(), pa.string())
        if not rows:
            continue
        memory = pa.BufferOutputStream()
        memory.write(header)
        memory.write(grammar.without_blanks(rows))
        reading.block_size = memory.tell()
        try:
            source = pa.BufferReader(memory.getvalue())
            table = pyarrow.csv.read_csv(source, reading, parsing, converting)
        except pa.ArrowInvalid as error:
            grammar.check_utf8(rows, first_row + n_rows)
            raise pa.ArrowInvalid(_renumbered(str(error), n_rows)) from None
        yield from table.rename_columns(list(columns)).to_batches()
        n_rows += table.num_rows


def is_separator(text: str) -> bool:
    """Return whether a text can separate cells: a character, not of a number, word or quote."""
    return len(text) == 1 and text.isascii() and not text.isalnum() and text not in '"\r\n\0.+-_'


def likely_separator(header: str, wanted: Sequence[str] = ()) -> str | None:
    """Guess the separator of a header that was read as one column; None if there is none.

    Args:
        header: The header.
        wanted: Names that it should hold. A blank separates only two or more of these: it may also
            be part of a name.
    """

    def found(separator: str) -> int:
        return len({part.strip(' "') for part in header.split(separator)} & set(wanted))

    present = [separator for separator in ";\t|," if separator in header]
    present += [" "] if found(" ") > 1 else []
    return max(present, key=lambda s: (found(s), header.count(s)), default=None)


def _cut_header(block: bytes, grammar: _Grammar) -> tuple[bytes, bytes]:
    """Split the first block into the header and the rows after it."""
    end = grammar.first_row(block)
    check_utf8(block, end, "header")
    return grammar.without_blanks(block[:end]), block[end:]


def _names(header: bytes, separator: str) -> list[str]:
    # The line break makes a header alone a whole row.
    source = pa.BufferReader(header + b"\n")
    parsed = pyarrow.csv.read_csv(source, parse_options=_parsing(separator))
    return list(parsed.column_names)


def _parsing(separator: str, *, ignore_empty_lines: bool = True) -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(
        delimiter=separator, newlines_in_values=True, ignore_empty_lines=ignore_empty_lines
    )


def _renumbered(message: str, n_rows_before: int) -> str:
    return re.sub(r"(?<=Row #)\d+", lambda row: str(int(row[0]) + n_rows_before), message)


class _Grammar:
    """Patterns of CSV with a certain separator.

    A quote inside an unquoted field is an ordinary character. A carriage return at the end of a
    block may be the first half of a line break. Quantifiers are possessive (++, *+): nothing
    backtracks.
    """

    def __init__(self, separator: bytes) -> None:
        mark = re.escape(separator)
        blank = b" \t".replace(separator, b"")
        text = rb"[^%b\r\n]*+" % mark
        quoted = rb'"(?:[^"]++|"")*+"' + text
        # By their first character, for speed: the last alternative is an empty field.
        unquoted = rb'[^"%b%b\r\n]%b' % (blank, mark, text)
        padded = rb'[%b]++(?:%b|(?!")%b)' % (blank, quoted, text)
        field = rb"(?:%b|%b|%b|)" % (unquoted, quoted, padded)
        row = rb"(?>(?:%b%b)*+%b(?:\n|\r\n|\r(?!\Z)))" % (field, mark, field)
        unpadded = rb'(?:%b|%b|[%b]++(?!")%b|)' % (unquoted, quoted, blank, text)
        self._row = re.compile(row)
        self._rows = re.compile(row + b"*+")
        self._blank_quotes = [bytes([byte]) + b'"' for byte in blank]
        self._up_to_blanks = re.compile(rb'((?:%b[%b\r\n])*+)[%b]++(?=")' % (unpadded, mark, blank))

    def end_of_rows(self, block: bytes) -> int:
        """Return the position after the last whole row."""
        rows = self._rows.match(block)
        return rows.end() if rows else 0

    def first_row(self, block: bytes) -> int:
        """Return the position after the first row."""
        found = self._row.match(block)
        return found.end() if found else len(block)

    def without_blanks(self, rows: bytes) -> bytes:
        """Remove the blanks before an opening quote, which Arrow would take for text."""
        if not any(pair in rows for pair in self._blank_quotes):
            return rows
        parts, position = [], 0
        while found := self._up_to_blanks.match(rows, position):
            parts.append(found[1])
            position = found.end()
        return b"".join([*parts, rows[position:]])

    def check_utf8(self, rows: bytes, number: int) -> None:
        """Raise UnicodeDecodeError for the first row that is not UTF-8; the rows start at a number.

        NUL bytes are fine here: UTF-16 was found in the header.
        """
        try:
            rows.decode()
        except UnicodeDecodeError as error:
            before = self._row.finditer(rows[: error.start])
            number += sum(1 for row in before if row[0].strip(b"\r\n"))
            error.reason = f"row {number}"
            raise


@cache
def _grammar(separator: str) -> _Grammar:
    return _Grammar(separator.encode())


def _blocks(file: Readable, grammar: _Grammar, *, has_header: bool) -> Iterator[bytes]:
    """Cut the stream between rows; no BOM and no empty line precedes the header."""
    rest, is_start = b"", has_header
    while more := file.read(_BLOCK_BYTES):
        block = rest + more
        if is_start:
            block = block.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
            is_start = not block
        only_newlines_end_rows = b'"' not in block and b"\n" in block
        end = block.rfind(b"\n") + 1 if only_newlines_end_rows else grammar.end_of_rows(block)
        if end:
            yield block[:end]
        rest = block[end:]
        if len(rest) > _MAX_ROW_BYTES:
            raise _unclosed_quote(rest)
    if rest:
        # The last row need not end in a line break.
        if grammar.end_of_rows(rest + b"\n") <= len(rest):
            raise _unclosed_quote(rest)
        yield rest


def _unclosed_quote(row: bytes) -> pa.ArrowInvalid:
    start = row[:60].decode(errors="replace")
    return pa.ArrowInvalid(f"a row never ends; is a quote not closed? It starts with {start!r}")
