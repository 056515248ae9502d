"""The same rows are the same matrix from every source, and in requests: as numbers and as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from handlers.schema import FeatureSchema, Matrix
from handlers.times import to_iso
from tests.services.databases import Database
from training.data import files
from training.data.feature_flags import EventFlags, readers_of
from training.data.features import fit_schema, to_matrix
from training.data.sources import DataError, Table
from training.data.tables import read_table
from training.golden import golden_matrix, golden_rows, request_rows

LOCAL = "Asia/Shanghai"
BIG = 7234567890123456789
FLAGS = EventFlags(
    categorical="user,shop,adult,price,ratio,day",
    multi="tags:|,ids:|",
    timestamp="at,born,day2,epoch",
    timezone=LOCAL,
    max_values=3,
    hash="shop:1000",
    hash_ids=True,
)
NAMES = [*FLAGS.categorical.split(","), "tags", "ids", *FLAGS.timestamp.split(",")]
DRAFTS = FLAGS.drafts(NAMES)

# Twice, so that every token is in the vocabulary. Each row has its instant in UTC.
ROWS: list[dict[str, Any]] = [
    {
        "user": BIG,
        "shop": "shop one",
        "adult": True,
        "price": Decimal("196.00"),
        "ratio": 0.1,
        "day": date(2026, 11, 25),
        "tags": ["new", "a b", "196"],
        "ids": [BIG, 7],
        "at": datetime(2026, 11, 25, 16, 30, 0, 250_000, tzinfo=UTC),
        "born": datetime(2026, 11, 24, 0, 0, tzinfo=UTC),
        "day2": date(2026, 11, 1),
        "epoch": 1_795_000_000,
    },
    {
        "user": 42,
        "shop": "42",
        "adult": False,
        "price": Decimal("12.50"),
        "ratio": 2.0,
        "day": date(1999, 1, 2),
        "tags": ["a b", "old", "new", "cut"],
        "ids": [7, 8, 9, BIG],
        "at": datetime(1969, 12, 31, 23, 0, tzinfo=UTC),
        "born": datetime(1930, 1, 1, tzinfo=UTC),
        "day2": date(1970, 1, 1),
        "epoch": 0,
    },
    {name: [] if name in ("tags", "ids") else None for name in NAMES},
    dict.fromkeys(NAMES),
] * 2


def local(time: datetime | None) -> datetime | None:
    """Return a time as a clock in the zone of the flags shows it, without an offset."""
    return None if time is None else time.replace(tzinfo=None) + timedelta(hours=8)


def spelled(value: Any) -> Any:
    """Spell a value as CSV and other text do."""
    if isinstance(value, list):
        return "|".join(map(str, value))
    return "" if value is None else str(value)


def in_json(value: Any) -> Any:
    """Spell a value as JSON does."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value


def read(source: Table) -> pd.DataFrame:
    """Read as training does."""
    return read_table(source, NAMES, readers=readers_of(DRAFTS))


def read_file(path: Path, separator: str = "") -> pd.DataFrame:
    """Read a file as training does."""
    return read(files.find(str(path), separator=separator).table)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Read the rows from JSON lines."""
    path = tmp_path_factory.mktemp("rows") / "t.jsonl"
    lines = [json.dumps({name: in_json(value) for name, value in row.items()}) for row in ROWS]
    path.write_text("\n".join(lines))
    return read_file(path)


@pytest.fixture(scope="module")
def schema(expected: pd.DataFrame) -> FeatureSchema:
    return fit_schema(expected, DRAFTS)


def check_same(frame: pd.DataFrame, expected: pd.DataFrame, schema: FeatureSchema) -> None:
    """Compare frames and their matrices, whose times may differ in the rounding of a float64."""
    pd.testing.assert_frame_equal(frame, expected, rtol=1e-12)
    np.testing.assert_allclose(to_matrix(schema, frame), to_matrix(schema, expected), rtol=1e-6)


def test_the_rows_hold_every_kind(expected: pd.DataFrame, schema: FeatureSchema) -> None:
    assert expected["tags"][0] == "new\x1fa b\x1f196"
    assert expected["ids"][0] == f"{BIG}\x1f7"
    assert expected["at"][:2].tolist() == [1_795_624_200.25, -3600]
    assert expected["price"][:2].tolist() == ["196", "12.5"]
    matrix = to_matrix(schema, expected)
    [hour, weekday] = (matrix[:2, schema.columns["at"]] - 2).astype(int).tolist()
    assert (hour, weekday) == ([0, 3], [7, 3])
    assert (matrix[:2, schema.columns["tags"]] >= 2).all()
    assert matrix[0, schema.columns["day2"]] == pytest.approx([25.0208], abs=1e-3)
    assert np.isnan(matrix[2:4, schema.columns["born"]]).all()


@pytest.mark.parametrize("separator", [",", ";", "|", "tab"])
@pytest.mark.parametrize("is_local", [False, True])
def test_csv(
    tmp_path: Path,
    expected: pd.DataFrame,
    schema: FeatureSchema,
    separator: str,
    is_local: bool,
) -> None:
    rows = [
        {
            name: spelled(local(value) if is_local and name in ("at", "born") else value)
            for name, value in row.items()
        }
        for row in ROWS
    ]
    sep = "\t" if separator == "tab" else separator
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False, sep=sep)
    check_same(read_file(tmp_path / "t.csv", sep), expected, schema)


TEXT_LISTS = pa.array([None if r["tags"] is None else "|".join(r["tags"]) for r in ROWS])
PARQUET: dict[str, dict[str, Callable[[], pa.Array]]] = {
    "lists": {},
    "large lists": {
        "tags": lambda: pa.array(column("tags"), pa.large_list(pa.large_string())),
        "ids": lambda: pa.array(column("ids"), pa.large_list(pa.int64())),
    },
    "lists of dictionaries": {
        "tags": lambda: pa.array(column("tags"), pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "ids": lambda: pa.array(column("ids"), pa.list_(pa.uint64())),
    },
    "texts": {"tags": lambda: TEXT_LISTS, "at": lambda: pa.array(map(spelled, column("at")))},
    "dictionaries": {
        "tags": TEXT_LISTS.dictionary_encode,
        "shop": lambda: pa.array(column("shop")).dictionary_encode(),
        "at": lambda: pa.array(map(spelled, column("at"))).dictionary_encode(),
    },
    "local times": {
        "at": lambda: pa.array(map(local, column("at")), pa.timestamp("ms")),
        "born": lambda: pa.array(map(local, column("born")), pa.timestamp("s")),
        "day2": lambda: pa.array(column("day2"), pa.date32()).cast(pa.timestamp("ns")),
    },
    "other zones": {
        "at": lambda: pa.array(column("at"), pa.timestamp("ns", "America/Lima")),
        "day2": lambda: pa.array(column("day2"), pa.date64()),
    },
    "numbers": {
        "at": lambda: epochs("at", 1),
        "born": lambda: epochs("born", 1).cast(pa.int64()),
        "epoch": lambda: pa.array(column("epoch"), pa.decimal128(20, 3)),
        "price": lambda: pa.array(column("price")).cast(pa.float64()),
        "adult": lambda: pa.array(column("adult")).cast(pa.int8()),
    },
}


def column(name: str) -> list[Any]:
    """Return the values of a column."""
    return [row[name] for row in ROWS]


def epochs(name: str, unit: int) -> pa.Array:
    """Return times as numbers."""
    return pa.array([None if t is None else t.timestamp() * unit for t in column(name)])


@pytest.mark.parametrize("types", PARQUET)
def test_parquet(tmp_path: Path, expected: pd.DataFrame, schema: FeatureSchema, types: str) -> None:
    special = PARQUET[types]
    table = {n: special[n]() if n in special else pa.array(column(n)) for n in NAMES}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    check_same(read_file(tmp_path / "t.parquet"), expected, schema)


SQL = {
    "mysql": {
        **{"user": "BIGINT", "shop": "VARCHAR(20)", "adult": "BOOL", "price": "DECIMAL(9, 2)"},
        **{"ratio": "DOUBLE", "day": "DATE", "tags": "JSON", "ids": "VARCHAR(99)"},
        **{"at": "DATETIME(6)", "born": "VARCHAR(40)", "day2": "DATE", "epoch": "BIGINT"},
    },
    "postgres": {
        **{'"user"': "BIGINT", "shop": "TEXT", "adult": "BOOL", "price": "NUMERIC(9, 2)"},
        **{"ratio": "DOUBLE PRECISION", "day": "DATE", "tags": "TEXT[]", "ids": "JSONB"},
        **{"at": "TIMESTAMPTZ", "born": "TIMESTAMP", "day2": "DATE", "epoch": "BIGINT"},
    },
}


@pytest.mark.parametrize("kind", ["mysql", "postgres"])
def test_databases(
    request: pytest.FixtureRequest, expected: pd.DataFrame, schema: FeatureSchema, kind: str
) -> None:
    database: Database = request.getfixturevalue(kind)
    rows = []
    for row in ROWS:
        cells = dict(row)
        if kind == "mysql":
            cells["tags"] = None if row["tags"] is None else json.dumps(row["tags"])
            cells["ids"] = None if row["ids"] is None else spelled(row["ids"])
            cells["at"], cells["born"] = local(row["at"]), spelled(row["born"])
        else:
            cells["ids"] = None if row["ids"] is None else json.dumps(row["ids"])
            cells["born"] = local(row["born"])
        rows.append(list(cells.values()))
    database.create("every", SQL[kind], rows)
    source = database.source(sql="SELECT * FROM every")
    frame = read([source])
    check_same(in_order(frame), in_order(expected), schema)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows that a database returns in any order."""
    return frame.sort_values("user", kind="stable").reset_index(drop=True)


@pytest.mark.usefixtures("_password")
def test_a_timestamp_of_mysql_is_in_utc(mysql: Database) -> None:
    mysql.create("stamps", {"at": "TIMESTAMP"}, [["2026-11-25 08:00:00"]])
    mysql.execute("SET time_zone = '+00:00'", "UPDATE stamps SET at = '2026-11-25 08:00:00'")
    frame = read_table([mysql.source(table="stamps")], ["at"], readers=readers_of(DRAFTS))
    assert [to_iso(at) for at in frame["at"]] == ["2026-11-25T08:00:00Z"]


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources carry their password."""
    monkeypatch.delenv("MYSQL_PWD", raising=False)


def served(schema: FeatureSchema, rows: list[dict[str, Any]]) -> Matrix:
    """Encode rows as a handler does."""
    row_type: Any = list[schema.row_type(forbid_unknown=True)]  # type: ignore[misc]
    return schema.matrix(
        schema.raw_matrix(msgspec.json.decode(msgspec.json.encode(rows), type=row_type))
    )


@pytest.mark.parametrize("spell", [in_json, spelled], ids=["json", "text"])
def test_requests(
    expected: pd.DataFrame, schema: FeatureSchema, spell: Callable[[Any], Any]
) -> None:
    rows = [{name: spell(value) for name, value in row.items()} for row in ROWS]
    np.testing.assert_allclose(served(schema, rows), to_matrix(schema, expected), rtol=1e-6)


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_requests_with_epochs(expected: pd.DataFrame, schema: FeatureSchema, unit: int) -> None:
    # The other time is so near to 1970 that milliseconds look like seconds.
    rows = [{"at": int(epochs("at", unit)[0].as_py())}]
    found = served(schema, rows)[:, schema.columns["at"]]
    assert (found == to_matrix(schema, expected)[0, schema.columns["at"]]).all()


def test_request_rows_and_golden_rows_are_those_of_the_file(
    expected: pd.DataFrame, schema: FeatureSchema
) -> None:
    rows = request_rows(schema, expected)
    assert rows[0]["at"] == "2026-11-25T16:30:00.250000Z"
    np.testing.assert_allclose(served(schema, rows), to_matrix(schema, expected), rtol=1e-6)
    np.testing.assert_array_equal(golden_matrix(schema, rows), served(schema, rows))
    golden = golden_rows(schema, expected)
    np.testing.assert_array_equal(golden_matrix(schema, golden), served(schema, golden))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ids", [7.0, 7.2e18], "expected ids, got 7.2e+18: a float of 2^53 or more has lost"),
        ("at", "soon", "expected epoch seconds, epoch milliseconds or an ISO 8601 time, got soon"),
        ("at", True, "expected epoch seconds, epoch milliseconds or an ISO 8601 time, got"),
    ],
)
def test_a_wrong_cell_is_named(
    tmp_path: Path, suffix: str, name: str, value: Any, problem: str
) -> None:
    path = tmp_path / f"t.{suffix}"
    values = [None, value, value]
    if suffix == "parquet":
        pq.write_table(pa.table({name: values, "n": [1, 2, 3]}), path)
    elif suffix == "csv":
        pd.DataFrame({name: map(spelled, values), "n": 1}).to_csv(path, index=False)
    else:
        path.write_text("\n".join(json.dumps({name: v, "n": 1}) for v in values))
    with pytest.raises(DataError) as error:
        read_table(files.find(str(path)).table, [name], readers=readers_of(DRAFTS))
    row = 3 if suffix == "csv" else 2
    assert f"row {row}, column {name}: {problem}" in str(error.value)
