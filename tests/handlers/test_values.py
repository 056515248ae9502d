"""A value has one spelling as a token, whatever holds it."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.counts import FeatureCounts
from handlers.errors import RowError
from handlers.feature import Feature
from handlers.histories import ItemHistories
from handlers.schema import FeatureSchema
from handlers.values import LostDigitsError, to_text, to_token
from training.data import files
from training.data.cells import to_free_texts, to_tokens
from training.data.sources import DataError
from training.data.tables import read_table
from training.tasks.links.data import read_edges

HEX_IDS = ["7e211810", "1234567e1", "12e45678", "1e400", "68fd1e64"]  # as in Criteo's click logs
SPELLINGS: list[tuple[str | None, list[Any]]] = [
    ("196", [196, 196.0, "196", "196.0", "196.00", "1.96e2", " 196", "196\t"]),
    ("12.5", [12.5, "12.5", "12.50", "1.25e1"]),
    ("100000", [100_000, 1e5, "1E5", "1e+5", "100000.0"]),
    ("1e-07", [1e-7, "1e-7", "0.0000001"]),
    ("0", [0, 0.0, -0.0, "-0", "0.0", False, "false", "False", "FALSE"]),
    ("1", [1, 1.0, "1", True, "true", "True", " TRUE "]),
    ("7234567890123456789", [7234567890123456789, "7234567890123456789"]),
    ("2026-11-25", ["2026-11-25", "2026-11-25 00:00:00.000000", "2026-11-25T00:00:00Z"]),
    ("2026-11-25T08:00:00Z", ["2026-11-25 08:00", "2026-11-25T16:00:00+08:00"]),
    ("2026-11-25T08:00:00.25Z", ["2026-11-25 08:00:00.250", "2026-11-25T08:00:00.25Z"]),
    ("007", ["007"]),
    ("+4930", ["+4930"]),
    *((id_, [id_, f" {id_}"]) for id_ in HEX_IDS),
    ("2026-02-30", ["2026-02-30"]),
    ("NA", ["NA"]),
    (None, [None, "", " ", float("nan")]),
]
SPELLED = [(token, value) for token, values in SPELLINGS for value in values]
LOST = [
    *(7.234567890123457e18, "7.234567890123457E18", "7e+18", "9999999999999999.0", 1e300),
    *(float(2**53 + 1), "9007199254740993.0", -(2.0**53)),
]


@pytest.mark.parametrize(("token", "value"), SPELLED)
def test_every_spelling_of_a_value_is_the_same_token(token: str | None, value: Any) -> None:
    assert to_token(value) == token


@pytest.mark.parametrize("value", LOST)
def test_a_float_beyond_2_to_the_53_is_no_token(value: Any) -> None:
    with pytest.raises(LostDigitsError, match=r"of 2\^53 or more"):
        to_token(value)


numbers = st.floats(-(2.0**53) + 1, 2.0**53 - 1) | st.integers() | st.decimals(-999, 999, places=4)
texts = (
    st.text()
    | numbers.map(str)
    | st.datetimes().map(lambda time: time.isoformat())
    | st.sampled_from([value for _, value in SPELLED if isinstance(value, str)])
)


@settings(max_examples=300, deadline=None)
@given(cells=st.lists(st.none() | texts, min_size=1, max_size=8))
def test_a_column_of_texts_has_the_tokens_of_its_cells(cells: list[str | None]) -> None:
    try:
        expected = [to_token(cell) for cell in cells]
    except LostDigitsError:
        assert to_tokens(pa.array(cells, pa.string()))[1] is not None
        return
    tokens, wrong = to_tokens(pa.array(cells, pa.string()))
    assert (tokens.to_pylist(), wrong) == (expected, None)


@pytest.mark.parametrize(
    ("values", "arrow_type"),
    [
        ([196, None, 7], pa.int64()),
        ([196.0, None, 12.5], pa.float64()),
        ([196.0, 0.5, 0.25], pa.float32()),
        ([Decimal("196.00"), Decimal("12.50"), None], pa.decimal128(10, 2)),
        ([True, False, None], pa.bool_()),
        ([pd.Timestamp("2026-11-25"), pd.Timestamp("2026-11-25 08:00"), None], pa.timestamp("us")),
        ([pd.Timestamp("2026-11-25", tz="Asia/Shanghai")], pa.timestamp("ms", "Asia/Shanghai")),
        ([pd.Timestamp("2026-11-25").date(), None], pa.date32()),
        ([" 196", "12.50", "1E5", "True", ""], pa.string()),
    ],
    ids=str,
)
def test_parquet_csv_and_json_lines_give_the_token_that_a_request_finds(
    tmp_path: Path, values: list[Any], arrow_type: pa.DataType
) -> None:
    column = pa.array(values, arrow_type)
    pa.parquet.write_table(pa.table({"c": column, "n": range(len(column))}), tmp_path / "t.parquet")
    frame = column.to_pandas()
    pd.DataFrame({"c": frame, "n": range(len(frame))}).to_csv(tmp_path / "t.csv", index=False)
    sent = [value if isinstance(value, int | float | None) else str(value) for value in values]
    lines = [json.dumps({"c": value}) for value in sent]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    read = {
        suffix: read_table(files.find(str(tmp_path / f"t.{suffix}")).table, [], ["c"])["c"]
        for suffix in ("parquet", "csv", "jsonl")
    }
    tokens = [None if pd.isna(token) else token for token in read["parquet"]]
    assert [to_token(value) for value in sent] == tokens
    for column_read in read.values():
        assert [None if pd.isna(token) else token for token in column_read] == tokens
    known = FeatureSchema(
        [Feature("c", kind="category", vocabulary=tuple(dict.fromkeys(filter(None, tokens))))]
    )
    rows = orjson.loads(orjson.dumps([{"c": value} for value in sent]))
    indices = known.encode(rows)[:, 0]
    assert [index >= 2 for index in indices] == [token is not None for token in tokens]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_ids_that_became_floats_are_refused_with_their_number(tmp_path: Path, suffix: str) -> None:
    ids = np.array([7234567890123456789 + i for i in range(20)], dtype=np.float64)
    ids[3] = np.nan
    frame = pd.DataFrame({"item": ids})
    path = tmp_path / f"t.{suffix}"
    frame.to_csv(path) if suffix == "csv" else frame.to_parquet(path)
    expected = (
        r"column item: expected ids, got 7.23\S+: a float of 2\^53 .* like 19 of the 20 cells"
    )
    with pytest.raises(DataError, match=expected):
        read_table(files.find(str(path)).table, [], ["item"])


def test_hexadecimal_ids_are_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["id", *HEX_IDS]))
    assert read_table(files.find(str(path)).table, [], ["id"])["id"].tolist() == HEX_IDS


def test_a_number_in_a_text_is_text_however_large(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("query\n7.2e+18\nred shoes\n")
    read = read_table(files.find(str(path)).table, [], ["query"], readers={"query": to_free_texts})
    assert read["query"].tolist() == [to_text("7.2e+18"), "red shoes"] == ["7.2e+18", "red shoes"]


def test_an_edge_list_with_ids_that_lost_digits_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("1 2\n7.2e+18 3\n")
    with pytest.raises(DataError, match=r"line 2: expected ids, got .7\.2e\+18 3.: a float"):
        read_edges(files.find(str(path), suffixes=[".txt"]))


def test_blanks_after_the_commas_of_csv_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label, price, item\n1, 64.06, 2\n0, 1.5, x y\n")
    frame = read_table(files.find(str(path)).table, ["label", "price"], ["item"])
    assert frame["price"].tolist() == [np.float32(64.06), 1.5]
    assert frame["item"].tolist() == ["2", "x y"]


@pytest.mark.parametrize("cells", ["True,False", "true,false", "1,0"])
def test_booleans_are_numbers_and_labels(tmp_path: Path, cells: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label\n" + cells.replace(",", "\n"))
    assert read_table(files.find(str(path)).table, ["label"])["label"].tolist() == [1, 0]
    parquet = tmp_path / "t.parquet"
    pd.DataFrame({"label": [True, False]}).to_parquet(parquet)
    assert read_table(files.find(str(parquet)).table, ["label"])["label"].tolist() == [1, 0]


def test_an_item_of_a_history_that_lost_digits_is_placed_by_its_row() -> None:
    histories = ItemHistories(["a", "b"], max_history=3)
    counts = FeatureCounts.zeros(1)
    with pytest.raises(RowError, match=r"expected an id, got 7.2e\+18") as error:
        histories.padded([["a", "b"], [], ["a", 7.2e18]], counts)
    assert (error.value.row, error.value.feature) == (2, "history_item_ids")


@pytest.mark.parametrize("hash_buckets", [0, 16])
def test_a_category_that_lost_digits_is_placed_by_its_row(hash_buckets: int) -> None:
    schema = FeatureSchema([Feature("id", kind="category", hash_buckets=hash_buckets)])
    with pytest.raises(RowError, match="send it as an integer or as text") as error:
        schema.encode([{"id": 7234567890123456789}, {"id": "1e+300"}])
    assert (error.value.row, error.value.feature) == (1, "id")
