"""Rows of MariaDB and PostgreSQL read like those of a file, completely or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pymysql
import pytest
from psycopg.conninfo import conninfo_to_dict

import scripts.train
from archive import catalog
from archive.gate import judge
from tests.conftest import lacking
from tests.examples import train
from tests.services.databases import PASSWORD, NotInstalledError, mariadb_server, postgres_server
from tests.services.proxy import proxy
from training import artifacts
from training.data import files
from training.data.databases import MySQL, Postgres, Query, public_dsn
from training.data.sources import DataError, DataSet
from training.data.splits import load_splits
from training.data.tables import read_table
from training.tasks.ranking.data import load_ranking_data
from training.tasks.ranking.world import impressions
from training.train_xgb import Config

KINDS = ["mysql", "postgres"]


@dataclass(frozen=True)
class Database:
    """A running server of one kind, reached as its user ``reader``."""

    kind: str
    port: int

    def execute(self, *statements: str, rows: Sequence[Sequence[Any]] = ()) -> None:
        """Run statements; the last one once for each row, if rows are given."""
        connection: Any = (
            pymysql.connect(
                host="127.0.0.1",
                port=self.port,
                user="reader",
                password=PASSWORD,
                database="recs",
                charset="utf8mb4",
            )
            if self.kind == "mysql"
            else psycopg.connect(self.dsn(), password=PASSWORD)
        )
        with connection, connection.cursor() as cursor:
            for statement in statements[:-1] if rows else statements:
                cursor.execute(statement)
            if rows:
                cursor.executemany(statements[-1], rows)
            connection.commit()

    def load(self, name: str, frame: pd.DataFrame) -> None:
        """Create a table from a data frame of numbers."""
        columns = ", ".join(f"{column} DOUBLE PRECISION" for column in frame)
        insert = f"INSERT INTO {name} VALUES ({', '.join(['%s'] * frame.shape[1])})"
        self.execute(
            f"DROP TABLE IF EXISTS {name}",
            f"CREATE TABLE {name} ({columns})",
            insert,
            rows=frame.to_numpy().tolist(),
        )

    def dsn(self, port: int | None = None) -> str:
        """Return a DSN without the password."""
        return f"postgresql://reader@127.0.0.1:{port or self.port}/postgres"

    def source(
        self, *, table: str = "", sql: str = "", port: int | None = None
    ) -> MySQL | Postgres:
        """Return a source for a table or a query."""
        if self.kind == "postgres":
            dsn = self.dsn(port).replace("reader", f"reader:{PASSWORD.replace(' ', '%20')}")
            return Postgres(Query(table, sql), dsn)
        return MySQL(Query(table, sql), "127.0.0.1", port or self.port, "reader", PASSWORD, "recs")

    def flags(self, *, port: int | None = None) -> list[str]:
        """Return the flags of a training script; the environment has the password."""
        port = port or self.port
        if self.kind == "postgres":
            return ["--data-source", "postgres", "--dsn", self.dsn(port)]
        user = ["--doris-user", "reader", "--mysql-database", "recs"]
        return ["--data-source", "mysql", "--mysql-port", str(port), *user]


@pytest.fixture(scope="module", params=KINDS)
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """Run each kind of server in turn."""
    server = mariadb_server if request.param == "mysql" else postgres_server
    try:
        with server() as port:
            yield Database(request.param, port)
    except NotInstalledError as error:
        lacking(str(error))


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
