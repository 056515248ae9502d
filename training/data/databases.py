"""Data in a database: the rows of a table or a query, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pyarrow as pa
import pymysql
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pymysql.converters import encoders
from pymysql.cursors import SSCursor

from training.data.csv_stream import csv_batches
from training.data.sources import DataError

_BATCH_ROWS = 1 << 16
CONNECT_TIMEOUT_S = 10
# A server may think for long before the first row of a query.
READ_TIMEOUT_S = 600
# And no decoders: cells come as the server's own text, as those of a CSV file do.
_ENCODERS: dict[Any, Any] = {**encoders}
# What of a DSN is no secret: of the many other parameters some are, and more may come.
_PUBLIC = {
    *("host", "hostaddr", "port", "dbname", "user"),
    *("sslmode", "target_session_attrs", "application_name"),
}


@dataclass(frozen=True)
class Query:
    """What to read of a database, either of the two.

    Attributes:
        table: Its name, with its database's or schema's before a dot or without.
        sql: A query; its columns have distinct names.
    """

    table: str = ""
    sql: str = ""

    @property
    def ordered(self) -> bool:
        """Whether the rows are asked for in an order."""
        return bool(re.search(r"\border\s+by\b", self.sql, re.IGNORECASE))

    @property
    def statement(self) -> str:
        """The query as it can stand in another one."""
        return self.sql.strip().rstrip(";")

    def __str__(self) -> str:
        """For messages."""
        return f"table {self.table}" if self.table else "query"


@dataclass(frozen=True)
class MySQL:
    """Rows of MySQL, or of what speaks its protocol: MariaDB, Doris, TiDB.

    Attributes:
        query: What to read.
        host: Of the server.
        port: Of the server.
        user: Who reads.
        password: Their password.
        database: Where tables without a database are.
    """

    query: Query
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str

    first_row = 1

    @property
    def ordered(self) -> bool:
        """As the query says."""
        return self.query.ordered

    @property
    def name(self) -> str:
        """Server and table."""
        return f"{self.query} of {self.host}:{self.port}"

    def columns(self) -> list[str]:
        """Names of all columns."""
        rows = _mysql_table(self.query.table) if self.query.table else f"({self.query.statement}\n)"
        with self._cursor() as cursor:
            cursor.execute(f"SELECT * FROM {rows} AS data LIMIT 0")
            return [column[0] for column in cursor.description]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows, as text."""
        # A query runs as it is: within another one, its order would be lost.
        statement = self.query.statement or (
            f"SELECT {', '.join(map(_mysql_name, columns))} FROM {_mysql_table(self.query.table)}"
        )
        with self._cursor() as cursor:
            cursor.execute(statement)
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(_BATCH_ROWS):
                cells = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
                yield pa.record_batch(cells, names=names)

    def sha256(self) -> None:
        """Only the rows tell."""

    @contextmanager
    def _cursor(self) -> Iterator[SSCursor]:
        try:
            connection = pymysql.connect(
                host=self.host,
                port=self.port,
                user=self.user,
                password=self.password,
                database=self.database or None,
                charset="utf8mb4",
                cursorclass=SSCursor,
                conv=_ENCODERS,
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                # A limit that an administrator set would cut the data short without a word.
                init_command="SET SESSION sql_select_limit = 9223372036854775807",
            )
            with closing(connection), connection.cursor() as cursor:
                try:
                    yield cursor
                except BaseException:
                    # Else closing the cursor reads all the rows that are still to come.
                    if (result := cursor._result) is not None:  # type: ignore[attr-defined]
                        result.unbuffered_active = False
                    raise
        except (pymysql.Error, UnicodeError) as error:
            raise DataError(f"{self.name}: {_mysql_message(error)}") from error


def _mysql_name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _mysql_table(table: str) -> str:
    return ".".join(map(_mysql_name, table.split(".")))


def _mysql_message(error: Exception) -> str:
    code, message = error.args if len(error.args) == 2 else ("", str(error))
    return f"{message} ({code})" if code else message


@dataclass(frozen=True)
class Postgres:
    """Rows of PostgreSQL, or of a service that is one, such as Supabase.

    Attributes:
        query: What to read.
        dsn: As libpq takes it; what it leaves out comes from PGHOST, PGPASSWORD and so on.
    """

    query: Query
    dsn: str = field(repr=False)

    first_row = 1

    @property
    def ordered(self) -> bool:
        """As the query says."""
        return self.query.ordered

    @property
    def name(self) -> str:
        """Server and table."""
        return f"{self.query} of {public_dsn(self.dsn) or 'postgres'}"

    def columns(self) -> list[str]:
        """Names of all columns."""
        with self._cursor() as cursor:
            cursor.execute(sql.SQL("SELECT * FROM {} AS data LIMIT 0").format(self._rows))
            return [column.name for column in cursor.description or ()]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows, as text."""
        # A query runs as it is: within another one, it need not keep its order.
        names, selected = list(columns), self._rows
        if self.query.table:
            fields = sql.SQL(", ").join(map(sql.Identifier, names))
            selected = sql.SQL("(SELECT {} FROM {})").format(fields, self._rows)
        else:
            names = self.columns()
        command = sql.SQL("COPY {} TO STDOUT (FORMAT csv, ENCODING 'UTF8')").format(selected)
        with self._cursor() as cursor, cursor.copy(command) as copy:
            yield from csv_batches(_CopyFile(copy), columns, names)

    def sha256(self) -> None:
        """Only the rows tell."""

    @property
    def _rows(self) -> sql.Composable:
        if self.query.table:
            return sql.Identifier(*self.query.table.split("."))
        return sql.SQL(f"({self.query.statement}\n)")

    @contextmanager
    def _cursor(self) -> Iterator[psycopg.Cursor[Any]]:
        try:
            with psycopg.connect(self.dsn, connect_timeout=CONNECT_TIMEOUT_S) as connection:
                connection.read_only = True
                with connection.cursor() as cursor:
                    # Else a large table starts where another reader of it is.
                    cursor.execute("SET LOCAL synchronize_seqscans = off")
                    yield cursor
        except psycopg.Error as error:
            raise DataError(f"{self.name}: {str(error).strip()}") from error


class _CopyFile:
    """What COPY sends, as the file that it would be."""

    def __init__(self, copy: Iterable[bytes | bytearray | memoryview]) -> None:
        self._parts = iter(copy)

    def read(self, size: int) -> bytes:
        """Whole parts, of as many bytes or a few more, and none at the end."""
        found = bytearray()
        while len(found) < size and (part := next(self._parts, None)) is not None:
            found += part
        return bytes(found)


def public_dsn(dsn: str) -> str:
    """What of a DSN may be told: where the data is, and who reads.

    Raises:
        DataError: It is none.
    """
    try:
        parts = conninfo_to_dict(dsn)
        places = f"{parts.get('host', '')} {parts.get('dbname', '')}"
        if "@" in places or not re.fullmatch(r"[\d,]*", str(parts.get("port", ""))):
            raise psycopg.ProgrammingError("a part of the password is taken for a place")
    except psycopg.ProgrammingError:
        # Neither the reason nor its traceback may be told: both may hold the password.
        raise DataError(
            "--dsn: expected postgresql://user:password@host:5432/database, "
            "the password with %40 for @, %2F for / and %3A for :"
        ) from None
    return make_conninfo(**{key: str(v) for key, v in parts.items() if key in _PUBLIC})
