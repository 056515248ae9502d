"""CSV that is cut into blocks reads like the whole file."""

from __future__ import annotations

import io
import subprocess
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import csv_stream
from training.data.csv_stream import csv_batches, csv_columns, likely_separator

CELLS = st.text(st.sampled_from('a1", \r\n;é\t|'), max_size=6)
NOISE = st.text(st.sampled_from('a1",\r\n'), max_size=40)
SEPARATORS = [",", "\t", ";", "|", " ", "^", "\x01"]
NAMES = ["x", "y"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_stream, "_BLOCK_BYTES", 7)
    monkeypatch.setattr(csv_stream, "_MAX_ROW_BYTES", 100)


def read(content: bytes, separator: str = ",") -> list[dict[str, str]]:
    """Read the rows of a file."""
    file = io.BytesIO(content)
    columns = csv_columns(file, separator)
    file.seek(0)
    batches = csv_batches(file, columns, separator=separator)
    return [row for batch in batches for row in batch.to_pylist()]


@given(
    st.lists(st.lists(CELLS, min_size=2, max_size=2)),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(SEPARATORS),
    st.sampled_from(["", "\ufeff", "\n", "\ufeff\r\n\n"]),
    st.sampled_from(["", " ", "   "]),
)
def test_blocks_hold_every_row_of_the_file(
    rows: list[list[str]], end_of_row: str, separator: str, before: str, blanks: str
) -> None:
    blanks = blanks if separator != " " else ""

    def written(row: list[str]) -> str:
        cells = ('"' + cell.replace('"', '""') + '"' for cell in row)
        return separator.join(blanks + cell for cell in cells) + end_of_row

    content = before + "".join(map(written, [NAMES, *rows]))
    expected = [dict(zip(NAMES, (cell or None for cell in row), strict=True)) for row in rows]
    assert read(content.encode(), separator) == expected


@given(st.lists(st.tuples(st.sampled_from(["1", "a b", "", 'say "hi"']), CELLS), min_size=1))
def test_blanks_before_a_quote_are_skipped_as_pandas_skips_them(
    rows: list[tuple[str, str]],
) -> None:
    lines = [f'{x}, "{y.replace(chr(34), chr(34) * 2)}"\n' for x, y in rows]
    content = "x, y\n" + "".join(lines)
    expected = pd.read_csv(
        io.StringIO(content), skipinitialspace=True, dtype=str, keep_default_na=False
    )
    found = pd.DataFrame(read(content.encode()), dtype=str).fillna("")
    assert found["x"].tolist() == expected["x"].tolist()
    # pandas takes a carriage return for a line break.
    assert [cell.replace("\r", "\n") for cell in found["y"]] == [
        cell.replace("\r\n", "\r\n").replace("\r", "\n") for cell in expected["y"]
    ]


@pytest.mark.parametrize(
    ("header", "wanted", "separator"),
    [
        ("label;price;item", ["price"], ";"),
        ("label\tprice", [], "\t"),
        ("label|price", ["label"], "|"),
        ("label,price", ["label"], ","),
        ('"label"; "a,b,c"', ["label"], ";"),
        ("user item rating", ["user", "item"], " "),
        ("item id", ["id"], None),
        ("label", ["price"], None),
    ],
)
def test_the_separator_of_a_header_is_guessed(
    header: str, wanted: list[str], separator: str | None
) -> None:
    assert likely_separator(header, wanted) == separator


@pytest.mark.parametrize("n_before", [0, 50])
def test_a_byte_that_is_not_utf_8_is_found_with_its_row(n_before: int) -> None:
    content = b"x,y\n" + b'1,"two\nlines"\n' * n_before + b"2,caf\xe9\n"
    with pytest.raises(UnicodeDecodeError, match=f"row {n_before + 2}$") as error:
        read(content)
    assert error.value.object[error.value.start] == 0xE9


@settings(max_examples=1000)
@given(NOISE)
def test_blocks_read_as_arrow_reads_the_file_or_are_an_error(noise: str) -> None:
    content = b"x,y\n" + noise.encode()
    try:
        found = read(content)
    except pa.ArrowInvalid:
        return
    types = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(NAMES, pa.string()), null_values=[""], strings_can_be_null=True
    )
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    whole = pyarrow.csv.read_csv(io.BytesIO(content), None, parsing, types)
    assert found == whole.to_pylist()


@pytest.mark.parametrize("end_of_row", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end"])
def test_every_kind_of_line_break_ends_a_row(end_of_row: str, last: str) -> None:
    rows = ["x,y", *(f"{i},b" for i in range(20))]
    content = end_of_row.join(rows) + (end_of_row if last else "")
    assert [row["x"] for row in read(content.encode())] == [str(i) for i in range(20)]


def test_an_error_names_the_row_of_the_file() -> None:
    content = b"x,y\n" + b"1,2\n" * 50 + b"3\n"
    with pytest.raises(pa.ArrowInvalid, match="Row #52: Expected 2 columns, got 1"):
        read(content)


@pytest.mark.parametrize("rest", [b"3,4\n", b"3,4\n" * 100])
def test_an_unclosed_quote_is_an_error(rest: bytes) -> None:
    with pytest.raises(pa.ArrowInvalid, match=r"a quote not closed\?.*starts with '1,\"2"):
        read(b'x,y\n1,2\n1,"2\n' + rest)


def test_the_interpreter_can_exit_in_the_middle_of_a_file() -> None:
    script = """
import io, time
from training.data import csv_stream

class Slow(io.BytesIO):
    def read(self, size):
        time.sleep(0.2)
        return super().read(size)

csv_stream._BLOCK_BYTES = 100
batches = csv_stream.csv_batches(Slow(b"x,y\\n" + b"1,2\\n" * 1000), ["x"])
print(next(batches).num_rows)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=30, check=False)
    assert done.returncode == 0
