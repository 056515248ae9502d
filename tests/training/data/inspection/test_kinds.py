"""An inspection tells what a column holds, by rules of which each has an example."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from training.data import files
from training.data.inspection.columns import Column, Inspection, names_id, words
from training.data.inspection.kinds import describe, inspect
from training.data.sources import DataError

SNOWFLAKE = 7_234_567_890_123_456_789


def column(cells: Any, name: str = "x") -> Column:
    return describe(name, pa.array(cells))


def inspected(path: Path, **options: Any) -> Inspection:
    return inspect(files.find(str(path)), **options)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1.5, 2, None], "number"),
        (["1.5", "NA", " 2"], "number"),
        ([Decimal("1.50"), Decimal("2.00")], "number"),
        ([3, 3, None], "constant"),
        (["a", "a"], "constant"),
        (["", " "], "constant"),
        ([None, None], "constant"),
        ([0, 1, 1], "boolean"),
        (["0", "1"], "boolean"),
        ([0.0, 1.0], "boolean"),
        ([True, False], "boolean"),
        (["True", "FALSE"], "boolean"),
        (["a", "b", "a", "b"], "category"),
        (["02134", "2134"], "text"),
        (["02134", "2134", "02134", "2134"], "category"),
        (["one headline", "another headline"], "text"),
        ([datetime(2026, 11, 25), datetime(2026, 11, 26)], "time"),
        (["2026-11-25", "2026-11-26 08:00"], "time"),
        (["2026-11-25T08:00:00+08:00", "2026-11-25T08:00:00Z"], "time"),
        ([["a", "b"], ["a"]], "list"),
        ([[1, 2], None], "list"),
        (["a|b", "b|a", "a", "b|a|b"], "list"),
        (["Paris, France", "Lyon, Italy", "Rome, Peru"], "text"),
        ([[0.5, 1.5], [2.5, 3.0]], "other"),
        (['["a", "b"]', '["b"]'], "other"),
        ([{"a": 1}, {"a": 2}], "other"),
    ],
)
def test_content_tells_the_kind(cells: list[Any], kind: str) -> None:
    assert column(cells).kind == kind


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("item_id", [196, 7, 3], "integer id"),
        ("itemId", ["196.00", "7"], "integer id"),
        ("userid", [196.0, None, 7.0], "integer id"),
        ("zip", [10115, 80331], "integer id"),
        ("brand", [4, 2, 9], "integer id"),
        ("bid", [196, 7, 3], "number"),
        ("paid", [196, 7, 3], "number"),
        ("item_id", [1.5, 2.5], "number"),
        ("item_id", ["a", "b", "c"], "category"),
        ("uin", [1_234_567_890, 1_987_654_321], "integer id"),
        ("revenue", [1_234_567_890, 17], "number"),
        ("event_time", [1_764_000_000, 1_764_086_400], "time"),
        ("createdAt", [1_764_000_000_000, 1_764_086_400_000], "time"),
        ("dt", ["20261125", "20261126"], "time"),
        ("dt", ["20261325", "20261126"], "number"),
        ("watch_time", [12, 30], "number"),
    ],
)
def test_a_name_tells_ids_and_times_from_numbers(name: str, cells: list[Any], kind: str) -> None:
    assert column(cells, name).kind == kind


def test_names_are_split_into_words() -> None:
    assert words("eventTime") == words("event_time") == words("Event-Time2") == ["event", "time"]
    assert words("userID") == ["user", "id"]
    assert names_id("userID")
    assert not names_id("")


@pytest.mark.parametrize(
    ("cells", "inexact"),
    [
        ([float(SNOWFLAKE), None, 5e18], 2),
        (["7.234567890123457e+18", "7.234567890123457e+18", ""], 2),
        ([SNOWFLAKE, None, SNOWFLAKE + 1], 0),
        ([str(SNOWFLAKE), str(SNOWFLAKE + 1)], 0),
        ([196.0, None, 7.0], 0),
    ],
    ids=["doubles", "text of floats", "integers", "text of integers", "small floats"],
)
def test_floats_that_have_lost_digits_of_an_id_are_counted(cells: Any, inexact: int) -> None:
    assert column(cells, "item_id").inexact == inexact


def test_values_are_counted_whatever_their_spelling() -> None:
    found = column(["a", " a", "b", "", None, "b"])
    assert (found.distinct, found.first) == (2, "a")
    assert found.missing == pytest.approx(1 / 3)
    assert found.codes.tolist() == [0, 0, 1, -1, -1, 1]
    numbers = column(["NaN", "1", "2.50", "NaN"])
    assert (numbers.distinct, numbers.missing) == (2, 0.5)
    assert numbers.codes.tolist() == [-1, 0, 1, -1]
    assert numbers.numbers is not None
    np.testing.assert_array_equal(numbers.numbers, [np.nan, 1, 2.5, np.nan])
    assert column(["a|b", "b|a", "a", "b|c|a|b"]).distinct == 3


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        ([196.0, 7.5], 196),
        (["", "1e2", "3"], 100),
        ([SNOWFLAKE, 3], str(SNOWFLAKE)),
        (["inf", "a", "a"], "inf"),
        ([None, True, False], True),
        ([datetime(2026, 11, 25, 8), None, datetime(2027, 1, 1)], "2026-11-25T08:00:00"),
        ([["a"], ["b"]], ["a"]),
    ],
)
def test_an_example_is_spelled_as_a_request_spells_it(cells: list[Any], first: Any) -> None:
    assert column(cells).first == first


def test_texts_among_numbers_are_named() -> None:
    cells = [*map(str, range(30)), "unknown"]
    assert column(cells).exceptions == ("unknown",)
    assert column(["1", "2", "x", "x"]).exceptions == ()


def test_a_sample_is_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame({"x": range(100)}).to_csv(path, index=False)
    found = inspected(path, max_rows=30)
    assert (found.rows, found.is_all, found.columns[0].distinct) == (30, False, 30)
    found = inspected(path, max_rows=100)
    assert (found.rows, found.is_all) == (100, True)


def test_many_files_each_give_a_share_of_the_sample(tmp_path: Path) -> None:
    for i in range(20):
        pd.DataFrame({"day": [i] * 50}).to_parquet(tmp_path / f"{i:02}.parquet")
    found = inspected(tmp_path, max_rows=100)
    assert (found.rows, found.is_all) == (100, False)
    assert found.columns[0].distinct == 10


def test_files_may_differ_in_columns_and_types(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "1.parquet")
    pd.DataFrame({"a": [1.5, 2], "b": [["x"], ["y"]]}).to_parquet(tmp_path / "2.parquet")
    (tmp_path / "3.jsonl").write_text('{"a": "z", "b": [], "c": 1}\n{"a": 4, "b": null}\n')
    a, b, c = inspected(tmp_path).columns
    assert (a.kind, a.codes.tolist()) == ("text", [0, 1, 2, 1, 3, 4])
    assert (b.kind, b.distinct, b.missing) == ("list", 2, 0.5)
    assert c.kind == "constant"
    assert c.missing == pytest.approx(5 / 6)


def test_the_train_split_of_a_folder_is_inspected(tmp_path: Path) -> None:
    for i, split in enumerate(["train", "valid", "test"]):
        pd.DataFrame({"x": [i, i + 10]}).to_csv(tmp_path / f"{split}.csv", index=False)
    found = inspected(tmp_path)
    assert (found.rows, found.is_split, found.columns[0].first) == (2, True, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n", "has no rows"), ("a,a\n1,2\n", "expected each column once, got a again")],
)
def test_what_cannot_be_inspected_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        inspected(path)
