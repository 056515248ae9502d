"""Rows of MariaDB and PostgreSQL read like those of a file, completely or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pymysql
import pytest
from psycopg.conninfo import conninfo_to_dict

import scripts.train
from archive import catalog
from archive.gate import judge
from scripts import inspect_data
from tests.examples import train
from tests.services.databases import PASSWORD, TYPED_ROWS, Database
from tests.services.proxy import proxy
from training import artifacts
from training.data import files
from training.data.databases import public_dsn
from training.data.inspection.kinds import inspect
from training.data.sources import DataError, DataSet
from training.data.splits import load_splits
from training.data.tables import read_table
from training.tasks.ranking.data import load_ranking_data
from training.tasks.ranking.world import impressions
from training.train_xgb import Config


@pytest.fixture(scope="session", params=["mysql", "postgres"])
def database(request: pytest.FixtureRequest) -> Database:
    """Return each kind of server in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the password where the clients of the databases look for it."""
    monkeypatch.setenv("MYSQL_PWD", PASSWORD)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


@pytest.fixture
def big(database: Database) -> int:
    """Create a table ``big``, too large for the buffers on the way; return its number of rows."""
    text = "repeat('x', 500)"
    numbers = (
        "SELECT seq AS id, {} AS text FROM seq_1_to_30000"
        if database.kind == "mysql"
        else "SELECT id, {} AS text FROM generate_series(1, 30000) AS id"
    )
    database.execute("DROP TABLE IF EXISTS big", f"CREATE TABLE big AS {numbers.format(text)}")
    return 30_000


def test_a_table_reads_like_a_file_of_the_same_rows(database: Database, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "price": [1.5, None, 1e-7, 1 / 3],
            "id": [2**53 + 1, 7, 0, -1],
            "city": ["a, b", 'say "hi"', "line\nbreak", "东京"],
        }
    )
    database.execute(
        "DROP TABLE IF EXISTS cells",
        "CREATE TABLE cells (price DOUBLE PRECISION, id BIGINT, city VARCHAR(20))",
        "INSERT INTO cells VALUES (%s, %s, %s)",
        rows=[
            [None if pd.isna(cell) else cell for cell in row]
            for row in table.itertuples(index=False)
        ],
    )
    path = tmp_path / "cells.csv"
    table.to_csv(path, index=False)
    columns = ["price"], ["id", "city"], ["absent"]
    read = read_table([database.source(table="cells")], *columns)
    pd.testing.assert_frame_equal(read, read_table(files.find(str(path)).table, *columns))


def test_only_null_and_empty_text_are_missing_whatever_a_text_looks_like(
    database: Database,
) -> None:
    database.execute(
        "DROP TABLE IF EXISTS texts",
        "CREATE TABLE texts (country VARCHAR(9), amount NUMERIC(9, 2))",
        "INSERT INTO texts VALUES (%s, %s)",
        rows=[["NA", 1.25], ["", 2], [None, None], ["null", 0]],
    )
    read = read_table([database.source(table="texts")], ["amount"], ["country"])
    assert [None if pd.isna(cell) else cell for cell in read["country"]] == [
        "NA",
        None,
        None,
        "null",
    ]
    assert [None if pd.isna(cell) else cell for cell in read["amount"]] == [1.25, 2, None, 0]
    # A row whose only cell is missing is still a row.
    assert len(read_table([database.source(table="texts")], ["amount"])) == 4


def test_the_types_of_a_database_read_as_those_of_a_parquet_file(
    database: Database, tmp_path: Path
) -> None:
    database.create_typed()
    path = tmp_path / "typed.parquet"
    pq.write_table(pa.Table.from_pylist(TYPED_ROWS), path)
    names = [name for name in TYPED_ROWS[0] if name != "tags"]
    columns = ["clicked", "price"], [name for name in names if name not in ("clicked", "price")]
    for numeric, categorical in (columns, ([], names)):
        read = read_table([database.source(table="typed")], numeric, categorical)
        expected = read_table(files.find(str(path)).table, numeric, categorical)
        pd.testing.assert_frame_equal(read, expected)


@pytest.mark.parametrize("read", ["table", "query"])
def test_lists_of_a_database_arrive_as_lists(database: Database, read: str) -> None:
    database.create_typed()
    source = (
        database.source(table="typed")
        if read == "table"
        else database.source(sql="SELECT tags FROM typed ORDER BY clicked DESC")
    )
    [batch] = source.batches(["tags"])
    lists = batch.column("tags")
    assert sorted(lists.drop_null().to_pylist()) == [[], ["a", "b, c"]]
    assert lists.null_count == 1
    with pytest.raises(DataError, match=r"column tags: expected one value per cell, got lists"):
        read_table([source], [], ["tags"])


@pytest.mark.parametrize(
    ("sql_type", "value", "cell"),
    [
        ("BOOL[]", "{t,f,NULL}", ["1", "0", None]),
        ("BIGINT[]", "{9007199254740993,7}", ["9007199254740993", "7"]),
        ("TEXT[]", r'{"a,b","say \"hi\"","NULL",NULL}', ["a,b", 'say "hi"', "NULL", None]),
        ("VARCHAR(9)[]", "{a}", ["a"]),
        ("TEXT[]", "{}", []),
        ("INT[]", "[0:1]={1,2}", ["1", "2"]),
        ("JSONB", '["a", 7]', ["a", "7"]),
        ("JSON", "[1, 2]", [1, 2]),
        ("JSON", "7", 7),
        ("BOOL", "t", "1"),
        ("NUMERIC", "196.00", "196.00"),
    ],
)
def test_the_values_of_postgres_arrive_as_lists_and_text(
    postgres: Database, sql_type: str, value: str, cell: object
) -> None:
    postgres.create("one", {"x": sql_type}, [[value]])
    [batch] = postgres.source(table="one").batches(["x"])
    assert batch.column("x").to_pylist() == [cell]


def test_a_bit_of_mysql_is_a_number(mysql: Database) -> None:
    types = {"one": "BIT(1)", "many": "BIT(10)"}
    read = mysql.read_back(types, [[1, 513], [0, 0], [None, None]], ["one"], ["many"])
    assert read["one"].fillna(-1).tolist() == [1, 0, -1]
    assert read["many"].fillna("").tolist() == ["513", "0", ""]


def test_a_long_text_of_mysql_is_a_list_only_if_each_cell_is_one(mysql: Database) -> None:
    read = mysql.read_back({"x": "LONGTEXT"}, [["[1]"], ["[new] shoes"]], [], ["x"])
    assert read["x"].tolist() == ["[1]", "[new] shoes"]


@pytest.fixture
def far_away(database: Database) -> Iterator[None]:
    """Give the server another time zone and spelling of dates."""
    if database.kind == "postgres":
        own = "ALTER ROLE reader"
        database.execute(f"{own} SET timezone = 'Asia/Shanghai'", f"{own} SET datestyle = 'SQL'")
        yield
        database.execute(f"{own} RESET timezone", f"{own} RESET datestyle")
        return
    connection = pymysql.connect(host="127.0.0.1", port=database.port, user="root")
    with connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL time_zone = '+08:00'")
        try:
            yield
        finally:
            cursor.execute("SET GLOBAL time_zone = DEFAULT")


@pytest.mark.usefixtures("far_away")
def test_times_are_in_utc_whatever_the_server_says(database: Database) -> None:
    types = {"at": "TIMESTAMP" if database.kind == "mysql" else "TIMESTAMPTZ", "day": "DATE"}
    # In the time zone of the server.
    read = database.read_back(types, [["2026-11-25 16:00:00", "2026-11-25"]], [], ["at", "day"])
    assert read.iloc[0].tolist() == ["2026-11-25T08:00:00Z", "2026-11-25"]


def test_blanks_at_the_ends_of_a_name_do_not_count(database: Database) -> None:
    quote = "`" if database.kind == "mysql" else '"'
    # MySQL allows no blank at the end of a name.
    column = f"{quote} x{quote}"
    database.create("blanks", {column: "INT"}, [[3]])
    for source in (database.source(table="blanks"), database.source(sql="SELECT * FROM blanks")):
        assert read_table([source], ["x"]).iloc[0, 0] == 3


def test_names_may_hold_any_character(database: Database) -> None:
    quote = "`" if database.kind == "mysql" else '"'
    column, table = (f"{quote}{name}{quote * 2}; --{quote}" for name in ("order ", "select "))
    names = [f"{name}{quote}; --" for name in ("order ", "select ")]
    schema = "recs" if database.kind == "mysql" else "public"
    database.execute(
        f"DROP TABLE IF EXISTS {table}",
        f"CREATE TABLE {table} ({column} INT)",
        f"INSERT INTO {table} VALUES (3)",
    )
    for name in (names[1], f"{schema}.{names[1]}"):
        assert read_table([database.source(table=name)], [names[0]]).iloc[0, 0] == 3


def test_a_query_keeps_its_order_and_names_its_columns(database: Database) -> None:
    database.load("points", pd.DataFrame({"x": range(50)}))
    query = "SELECT x, x * x AS squared FROM points WHERE x < 40 ORDER BY x DESC -- newest first\n;"
    read = read_table([database.source(sql=query)], ["squared", "x"])
    assert read["x"].tolist() == list(range(39, -1, -1))
    assert read["squared"].tolist() == [x * x for x in range(39, -1, -1)]


def test_a_time_column_orders_the_rows(database: Database) -> None:
    database.execute(
        "DROP TABLE IF EXISTS days",
        "CREATE TABLE days (x INT, day TIMESTAMP)",
        "INSERT INTO days VALUES (%s, %s)",
        rows=[[x, f"2026-11-{20 - x:02d} 08:00:00"] for x in range(10)],
    )
    data = DataSet("days", {"": [database.source(table="days")]})
    assert load_splits(data, ["x"], time_column="day").test["x"].tolist() == [0]


def test_the_same_rows_in_another_order_are_the_same_data(database: Database) -> None:
    database.load("points", pd.DataFrame({"x": range(50)}))
    hashes = set()
    for query in ("x FROM points ORDER BY x", "x FROM points ORDER BY x DESC", "x + 1 FROM points"):
        source = database.source(sql=f"SELECT {query}")
        read = read_table([source], source.columns())
        hashes.add(DataSet("points", {"": [source]}).sha256(read))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("sql", "table", "message"),
    [
        ("", "words", 'row 2, column x: expected a number, got "two"'),
        ("SELECT x AS y FROM words", "", "missing column x; it has y"),
        ("SELECT x AS xx, x AS z FROM words", "", "missing column x (did you mean xx?)"),
        ("SELECT x FROM words WHERE x = 'none'", "", "has no rows"),
        ("", "no_such_table", "no_such_table"),
        ("SELEKT 1", "", "syntax"),
    ],
)
def test_the_message_names_what_is_wrong(
    database: Database, sql: str, table: str, message: str
) -> None:
    database.execute(
        "DROP TABLE IF EXISTS words",
        "CREATE TABLE words (x VARCHAR(9))",
        "INSERT INTO words VALUES ('1'), ('two')",
    )
    source = database.source(table=table, sql=sql)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_table([source], ["x"])
    assert str(error.value).startswith(f"{source.name}: ")


def test_a_connection_that_drops_during_a_read_is_an_error(database: Database, big: int) -> None:
    with proxy(database.port) as between:
        source = database.source(port=between.port, table="big")
        assert len(read_table([source], ["id"], ["text"])) == big
        between.break_after_bytes = 5_000_000
        with pytest.raises(DataError, match=r"(?i)lost connection|closed the connection|terminat"):
            read_table([source], ["id"], ["text"])
        assert between.broken == 1


def test_reading_can_stop_early(database: Database, big: int) -> None:
    with proxy(database.port) as between:
        batches = database.source(port=between.port, table="big").batches(["id", "text"])
        assert len(next(batches)) <= big
        assert isinstance(batches, Generator)
        batches.close()


def test_an_inspection_reads_the_first_rows_and_proposes_the_flags_of_the_source(
    database: Database, big: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspect(DataSet("big", {"": [database.source(table="big")]}), max_rows=1000)
    assert (found.rows, found.is_all, len(found.columns)) == (1000, False, 2)
    query = f"SELECT id AS user_id, id % 7 AS item_id, id % 2 AS clicked FROM big LIMIT {big}"
    flags = [*database.flags(), "--query", query]
    assert inspect_data.main(flags) == 0
    printed = capsys.readouterr().out.replace("\\\n", "")
    assert f"--data-source {database.kind}" in printed
    assert f'--query "{query}"' in printed
    assert "--label clicked" in printed
    assert PASSWORD not in printed


@pytest.mark.parametrize("database", ["mysql"], indirect=True)
def test_a_limit_of_the_administrator_does_not_shorten_the_data(
    database: Database, big: int
) -> None:
    connection = pymysql.connect(host="127.0.0.1", port=database.port, user="root")
    with connection, connection.cursor() as cursor:
        cursor.execute("SET GLOBAL sql_select_limit = 10")
        try:
            assert len(read_table([database.source(table="big")], ["id"])) == big
        finally:
            cursor.execute("SET GLOBAL sql_select_limit = DEFAULT")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    """Train a few trees, and return the exit status."""

    def run(*flags: str) -> int:
        return train("xgb", "--epochs", "3", "--artifacts-dir", str(tmp_path), *flags)

    return run


def test_a_table_trains_the_same_model_as_a_file(
    database: Database, run: Callable[..., int], tmp_path: Path
) -> None:
    data = impressions(2_000, seed=5)[0]
    data["at"] = range(len(data))
    database.load("clicks", data)
    data.to_csv(tmp_path / "clicks.csv", index=False)
    in_order = ["--time-column", "at"]
    assert run("--version", "file", "--data-path", str(tmp_path / "clicks.csv"), *in_order) == 0
    flags = [*database.flags(), "--table", "clicks", *in_order]
    assert run("--version", "table", *flags) == 0
    weights = [
        (tmp_path / "xgb" / version / "xgb_model.json").read_bytes()
        for version in ("file", "table")
    ]
    assert weights[0] == weights[1]
    # The gate reads the training data again.
    meta = artifacts.read_meta(tmp_path / "xgb" / "table")
    again = Config(**meta["hyperparameters"]).data(Path("unused"))
    assert again.sha256(read_table(again.table, ["label", *meta["feature_columns"][:5]]))


def test_the_gate_reads_the_test_split_of_training_again(
    database: Database, run: Callable[..., int], tmp_path: Path
) -> None:
    data = impressions(2_000, seed=5)[0]
    database.load("clicks", data)
    flags = [*database.flags(), "--table", "clicks", "--version"]
    assert run(*flags, "old") == 0
    assert run(*flags, "new", "--features", "item_ctr,user_age") == 0
    config = judge.GateConfig(
        model="xgb", model_dir=tmp_path, registry=tmp_path, slice=("item_price",)
    )
    new, old = (
        judge.open_archive(config, version, tmp_path / version) for version in ("new", "old")
    )
    trained = load_ranking_data(Config(**new.meta["hyperparameters"]), ["label"]).test_frame
    database.load("clicks", data.sample(frac=1, random_state=1))
    evaluation = judge.held_out(catalog.get("xgb"), new, old, config)
    pd.testing.assert_frame_equal(evaluation.frame[list(trained)], trained)
    assert {"user_gender", "item_price"} <= set(evaluation.frame)
    assert evaluation.data_sha256 == new.meta["data_sha256"]


def test_no_secret_is_printed_or_written(
    database: Database,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MYSQL_PWD")
    monkeypatch.delenv("PGPASSWORD")
    database.load("clicks", impressions(2_000, seed=5)[0])

    def flags(secret: str) -> list[str]:
        plain = [*database.flags(), "--table", "clicks"]
        if database.kind == "mysql":
            return [*plain, "--doris-password", secret]
        return [flag.replace("reader@", f"reader:{secret.replace(' ', '%20')}@") for flag in plain]

    assert run("--version", "v1", *flags(PASSWORD)) == 0
    assert run("--version", "v2", *flags("wrong horse")) == 1
    printed = capsys.readouterr()
    assert "v1" in printed.out
    assert "authentication failed" in printed.err or "Access denied" in printed.err
    written = [path.read_text() for path in (tmp_path / "xgb" / "v1").glob("*.json")]
    assert json.loads((tmp_path / "xgb" / "v1" / "feature_meta.json").read_text())
    for text in (printed.out, printed.err, *written):
        assert "horse" not in text


def test_training_by_name_prints_no_password(capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--data-source", "mysql", "--table", "a", "--mysql-port", "1"]
    assert scripts.train.main(["--model", "xgb", *flags, "--mysql-password", "horse"]) == 1
    printed = capfd.readouterr()
    assert "Can't connect" in printed.err
    assert "horse" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("dsn", "public"),
    [
        (
            "postgresql://u:horse@h1:5432,h2:5433/db?sslmode=require&target_session_attrs=any",
            "user=u dbname=db host=h1,h2 port=5432,5433 sslmode=require target_session_attrs=any",
        ),
        ("postgresql://h/db?oauth_client_secret=horse&sslpassword=horse", "dbname=db host=h"),
        ("host=h scram_client_key=horse scram_server_key=horse password=horse", "host=h"),
        ("", ""),
    ],
)
def test_a_public_dsn_holds_no_secret(dsn: str, public: str) -> None:
    assert conninfo_to_dict(public_dsn(dsn)) == conninfo_to_dict(public)


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:hor/se@h/d", "postgresql://u:1/horse@h/d", "postgresql://u:x@horse@h/d"]
)
def test_an_unescaped_password_is_not_printed(dsn: str) -> None:
    with pytest.raises(DataError, match="the password with %40 for @") as error:
        public_dsn(dsn)
    assert "horse" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data-source", "mysql"], "--data-source mysql: expected --table or --query"),
        (["--data-source", "doris", "--table", "a", "--query", "b"], "expected --table or --query"),
        (["--doris-table", "clicks"], "--table: is for --data-source mysql, doris or postgres"),
        (["--dsn", "postgresql://h/d"], "--dsn: is for --data-source mysql, doris or postgres"),
        (
            ["--data-source", "postgres", "--table", "a", "--data-path", "b.csv"],
            "--data-path: is for --data-source file or oss, got --data-source postgres",
        ),
        (
            ["--data-source", "mysql", "--table", "a", "--separator", ";"],
            "--separator: is for --data-source file or oss, got --data-source mysql",
        ),
        (["--data-source", "oss"], "expected --data-path s3://bucket/path or oss://bucket/path"),
        (
            ["--data-source", "postgres", "--table", "a", "--dsn", "postgresql://u:horse@x@h/d"],
            "--dsn: expected postgresql://user:password@host:5432/database",
        ),
        (
            ["--data-source", "postgres", "--table", "a", "--dsn", "horse"],
            "--dsn: expected postgresql://user:password@host:5432/database",
        ),
        (
            ["--data-source", "doris", "--table", "a", "--doris-port", "1"],
            "table a of 127.0.0.1:1: Can't connect",
        ),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    flags: list[str], message: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags) == 1
    stderr = capsys.readouterr().err
    assert message in stderr
    assert "horse" not in stderr
