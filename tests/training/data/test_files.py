"""Files as other tools write them: their separators, encodings, blanks, lists and defects."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data import files
from training.data.config import DataConfig
from training.data.nested import json_cells, nested_problem
from training.data.sources import DataError
from training.data.tables import read_table

ROWS = [{"label": 1, "price": 64.06, "item": "a, b"}, {"label": 0, "price": 5, "item": "c"}]


def read(path: Path, separator: str = "") -> pd.DataFrame:
    data = DataConfig(data_path=str(path), separator=separator).data(Path("unused"))
    return read_table(data.table, ["label", "price"], ["item"])


def problem(path: Path, separator: str = "") -> str:
    with pytest.raises(DataError) as error:
        read(path, separator)
    return str(error.value).replace(f"{path.parent}/", "")


def as_csv(separator: str = ",", blanks: str = "") -> str:
    rows = [list(ROWS[0]), *(map(str, row.values()) for row in ROWS)]
    quoted = ([f'"{cell}"' if "," in cell else cell for cell in row] for row in rows)
    return "".join((separator + blanks).join(row) + "\n" for row in quoted)


def expected() -> pd.DataFrame:
    return pd.DataFrame(ROWS).astype({"label": "float32", "price": "float32", "item": "str"})


def write(name: str, key: Callable[[str], str]) -> Callable[[Path], None]:
    """Return a function that writes the rows in one format, under changed names."""
    rows = [{key(name): value for name, value in row.items()} for row in ROWS]

    def run(path: Path) -> None:
        if name == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif name == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if name == "tsv" else ",")

    return run


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
@pytest.mark.parametrize("key", [" {}", "{} ", "\t{}  "], ids=["before", "after", "both"])
def test_blanks_at_the_ends_of_a_column_name_do_not_count(
    tmp_path: Path, suffix: str, key: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "tsv" and "\t" in key:
        key = " {}  "
    write(suffix, key.format)(path)
    pd.testing.assert_frame_equal(read(path), expected())


@pytest.mark.parametrize("blanks", [" ", "   ", "\t"])
def test_blanks_after_the_comma_do_not_count(tmp_path: Path, blanks: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(as_csv(blanks=blanks))
    pd.testing.assert_frame_equal(read(path), expected())


@pytest.mark.parametrize(
    ("name", "written", "flag"),
    [
        ("t.csv", ";", ";"),
        ("t.csv", "|", "|"),
        ("t.csv", "\t", "tab"),
        ("t.csv", "\t", r"\t"),
        ("t.csv", "\t", "\t"),
        ("t.csv", " ", " "),
        ("t.csv", "\x01", "\x01"),
        ("t.tsv", "\t", ""),
        ("t.tsv", ",", ","),
        ("t.csv.gz", ";", ";"),
        ("t.tsv.gz", "\t", ""),
    ],
)
def test_a_file_may_have_another_separator(
    tmp_path: Path, name: str, written: str, flag: str
) -> None:
    text = as_csv(written)
    if written == " ":
        text = text.replace("a, b", "a,b")
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    found = read(path, flag)
    assert found["price"].tolist() == expected()["price"].tolist()
    assert found["item"].tolist() == ["a,b" if written == " " else "a, b", "c"]


def test_the_separator_holds_for_each_file_of_a_folder(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.csv").write_text(as_csv(";"))
    data = DataConfig(data_path=str(tmp_path), separator=";").data(Path("unused"))
    assert set(data.tables) == {"train", "valid", "test"}
    assert len(read_table(data.table, ["label"])) == 6


@pytest.mark.parametrize(
    ("name", "written", "flag", "shown"),
    [
        ("t.csv", ";", "", "';'"),
        ("t.csv", "|", "", "'|'"),
        ("t.csv", "\t", "", "tab"),
        ("t.csv", " ", "", "' '"),
        ("t.tsv", ",", "", "','"),
        ("t.csv", ";", "|", "';'"),
    ],
)
def test_the_message_names_the_separator_that_seems_used(
    tmp_path: Path, name: str, written: str, flag: str, shown: str
) -> None:
    path = tmp_path / name
    path.write_text(f"label{written}price{written}item\n1{written}2{written}3\n")
    assert problem(path, flag).endswith(
        f"a single column; is {shown} the separator? Add --separator {shown}"
    )


@pytest.mark.parametrize("separator", ["::", "a", '"', "\n", ".", "-", "§"])
def test_an_impossible_separator_is_refused(separator: str) -> None:
    with pytest.raises(DataError, match="--separator: expected tab or a character such as ;"):
        DataConfig(data_path="t.csv", separator=separator).data(Path("unused"))


def as_json() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.mark.parametrize("before", ["\ufeff", "\ufeff\n", "\n\r\n"])
def test_a_byte_order_mark_and_empty_lines_before_csv_are_skipped(
    tmp_path: Path, before: str
) -> None:
    path = tmp_path / "t.csv"
    # A quoted name, so that the mark does not hide the quote.
    path.write_text(before + as_csv().replace("label", '"label"'))
    pd.testing.assert_frame_equal(read(path), expected())


def test_a_byte_order_mark_before_json_lines_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\ufeff" + as_json())
    pd.testing.assert_frame_equal(read(path), expected())


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.jsonl.gz"])
def test_utf_16_is_named_with_its_conversion(
    tmp_path: Path, name: str, encoding: str, named: str
) -> None:
    path = tmp_path / name
    content = (as_json() if "json" in name else as_csv()).encode(encoding)
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    plain = name.removesuffix(".gz")
    target = plain.replace(".", ".utf8.", 1)
    source = f"gunzip -c {name} | iconv -f {named} -t UTF-8"
    if name == plain:
        source = f"iconv -f {named} -t UTF-8 {name}"
    assert problem(path) == (
        f"{name}: expected text in UTF-8, got {named}; convert it: {source} > {target}"
    )


@pytest.mark.parametrize(
    ("text", "encoding", "byte", "named"),
    [
        ("café", "latin-1", "0xe9", "LATIN1"),
        ("编号", "gb18030", "0xb1", "LATIN1 or GB18030"),
    ],
)
@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("t.csv", "{},label,price,item\n1,2,3,4\n", "header"),
        ("t.csv", "label,price,item\n1,2,3\n4,5,{}\n", "row 3"),
        ("t.csv", '"label",price,item\n1,2,"two\nlines"\n4,5,{},\n', "row 3"),
        ("t.jsonl", '{{"{}": 1}}\n', "row 1"),
        ("t.jsonl", '{{"item": 1}}\n{{"item": "{}"}}\n', "row 2"),
    ],
)
def test_text_that_is_not_utf_8_is_shown_with_its_conversion(
    tmp_path: Path,
    name: str,
    content: str,
    place: str,
    text: str,
    encoding: str,
    byte: str,
    named: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(content.format(text).encode(encoding))
    found = problem(path)
    assert found.startswith(f"{name}: expected text in UTF-8, got byte {byte} ({place}) in b")
    assert f"; it may be {named}: convert it: iconv -f LATIN1 -t UTF-8 {name} > t.utf8." in found


def test_bytes_of_a_column_that_is_not_read_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("age,name\n1,café\n".encode("latin-1"))
    assert read_table(files.find(str(path)).table, ["age"])["age"].tolist() == [1]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"label,price,item\n", mtime=0), "got a gzip file; end its name in .gz"),
        (b"PAR1\x15\x04\xff\xfe\n", "got a Parquet file; end its name in .parquet"),
        (b"PK\x03\x04\x14\x00\xff\n", "got a zip file or an Excel workbook; extract it"),
        (b"\x00\xff\xfe not a table", "it is not a text file"),
    ],
    ids=["gzip", "parquet", "zip", "noise"],
)
def test_a_file_of_another_format_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert message in problem(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_file_that_is_truncated_or_not_gzip_is_unreadable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}.gz"
    whole = gzip.compress("".join(f"{i * i}\n" for i in range(10_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    assert problem(path).endswith("the file is incomplete; copy it again")
    damaged = gzip.compress(as_csv().encode())
    for content in (as_csv().encode(), b"age\n1\n", damaged[:10] + b"\xff" + damaged[11:]):
        path.write_bytes(content)
        assert problem(path).endswith("or not gzip: copy it again, or remove .gz from its name")


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe not a table", b"PAR1 cut short"])
def test_broken_parquet_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    assert "cannot be read: " in problem(path)


LIST_PROBLEM = "expected one value per cell, got lists (list<{}>); write one value per cell"
OBJECT_PROBLEM = "expected one value per cell, got objects (struct); write the fields to use as"


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("column", ["price", "item"], ids=["number", "category"])
@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([[1, 2], [3]], LIST_PROBLEM.format("int64")),
        ([["a"], None], LIST_PROBLEM.format("string")),
        ([[0.5], []], LIST_PROBLEM.format("double")),
        ([[[1]], [[2]]], "got lists of lists (list<list<int64>>); flatten them"),
        ([[{"a": 1}], []], "got lists of objects (list<struct>); flatten them"),
        ([{"a": 1}, None], OBJECT_PROBLEM),
    ],
    ids=["integers", "texts", "floats", "lists", "objects in lists", "objects"],
)
def test_a_cell_of_several_values_is_refused_with_what_to_do(
    tmp_path: Path, suffix: str, column: str, cells: list[Any], message: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    rows = [{**row, column: cell} for row, cell in zip(ROWS, cells, strict=True)]
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    assert problem(path).startswith(f"t.{suffix}: column {column}: ")
    assert message in problem(path)


def test_times_in_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"age": [1, 2], "at": [[1], [2]]}), path)
    with pytest.raises(DataError, match=r"column at: expected one value per cell, got lists"):
        read_table(files.find(str(path)).table, ["age"], order_by="at")


@pytest.mark.parametrize(
    ("values", "cells", "cell_type"),
    [
        ([[1, 2], None], [[1, 2], None], pa.list_(pa.int64())),
        ([["a"], []], [["a"], []], pa.list_(pa.string())),
        ([[1, "a", True, None, 1.5]], [["1", "a", "true", None, "1.5"]], pa.list_(pa.string())),
        ([["a"], "b", 7, ""], [["a"], ["b"], ["7"], None], pa.list_(pa.string())),
        ([[2**63], [-1]], [[str(2**63)], ["-1"]], pa.list_(pa.string())),
        ([1, "a", True, None], ["1", "a", "true", None], pa.string()),
    ],
)
def test_cells_of_json_have_one_type(
    values: list[Any], cells: list[Any], cell_type: pa.DataType
) -> None:
    found = json_cells(values)
    assert (found.to_pylist(), found.type) == (cells, cell_type)


@pytest.mark.parametrize(
    "values",
    [[{"a": 1}, 3], [{"a": 1}, {"a": "x"}], [[1], {"a": 1}], [["a", {"b": 1}]], [["a", ["b"]]]],
)
def test_mixed_objects_are_a_problem_and_no_text(values: list[Any]) -> None:
    for multi in (False, True):
        assert nested_problem(json_cells(values).type, multi=multi)


@pytest.mark.parametrize(
    ("cell_type", "is_fine"),
    [
        (pa.list_(pa.int64()), True),
        (pa.large_list(pa.string()), True),
        (pa.list_(pa.float32(), 2), True),
        (pa.string(), True),
        (pa.list_(pa.list_(pa.int64())), False),
        (pa.map_(pa.string(), pa.int64()), False),
        (pa.struct([("a", pa.int64())]), False),
    ],
    ids=str,
)
def test_a_column_of_lists_may_hold_lists_of_single_values(
    cell_type: pa.DataType, is_fine: bool
) -> None:
    assert (not nested_problem(cell_type, multi=True)) == is_fine


def test_a_file_keeps_its_separator(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(as_csv(";"))
    [file] = files.find(str(path), separator=";").table
    assert isinstance(file, files.File)
    assert file.columns() == ["label", "price", "item"]
    assert replace(file, separator="").columns() == ["label;price;item"]
