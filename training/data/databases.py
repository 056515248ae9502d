"""Stream the rows of a table or a query from a database."""

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
# A query may take minutes before its first row.
READ_TIMEOUT_S = 600
# Encoders but no decoders: cells arrive as the server's text, like those of a CSV file.
_ENCODERS: dict[Any, Any] = {**encoders}
# Parameters of a DSN that are not secret. Some of the many others are, and libpq may add more.
_PUBLIC = {
    *("host", "hostaddr", "port", "dbname", "user"),
    *("sslmode", "target_session_attrs", "application_name"),
}


@dataclass(frozen=True)
class Query:
    """What to read from a database: a table or a query.

    Attributes:
        table: Name of a table, optionally with that of its database or schema before a dot.
        sql: A query whose columns have distinct names.
    """

    table: str = ""
    sql: str = ""

    @property
    def ordered(self) -> bool:
        """Whether the query orders its rows."""
        return bool(re.search(r"\border\s+by\b", self.sql, re.IGNORECASE))

    @property
    def statement(self) -> str:
        """The query, ready to be nested in another one."""
        return self.sql.strip().rstrip(";")

    def __str__(self) -> str:
        """Describe it in messages."""
        return f"table {self.table}" if self.table else "query"


@dataclass(frozen=True)
class MySQL:
    """Rows of MySQL, or of a server that speaks its protocol: MariaDB, Doris, TiDB.

    Attributes:
        query: What to read.
        host: Host of the server.
        port: Port of the server.
        user: Account to connect as.
        password: Password of the account.
        database: Database of a table that is named without one.
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
        """Whether the query orders its rows."""
        return self.query.ordered

    @property
    def name(self) -> str:
        """Table and server."""
        return f"{self.query} of {self.host}:{self.port}"

    def columns(self) -> list[str]:
        """Return the names of all columns."""
        rows = _mysql_table(self.query.table) if self.query.table else f"({self.query.statement}\n)"
        with self._cursor() as cursor:
            cursor.execute(f"SELECT * FROM {rows} AS data LIMIT 0")
            return [column[0] for column in cursor.description]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows as text."""
        # A query runs as it is, since nesting would lose its order.
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
        """Return None: only the rows identify the content."""

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
                # A limit that an administrator set would silently cut the data short.
                init_command="SET SESSION sql_select_limit = 9223372036854775807",
            )
            with closing(connection), connection.cursor() as cursor:
                try:
                    yield cursor
                except BaseException:
                    # Otherwise closing the cursor reads all remaining rows.
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
    """Rows of PostgreSQL, or of a service built on it, such as Supabase.

    Attributes:
        query: What to read.
        dsn: Connection string of libpq, which takes the rest from PGHOST, PGPASSWORD and so on.
    """

    query: Query
    dsn: str = field(repr=False)

    first_row = 1

    @property
    def ordered(self) -> bool:
        """Whether the query orders its rows."""
        return self.query.ordered

    @property
    def name(self) -> str:
        """Table and server."""
        return f"{self.query} of {public_dsn(self.dsn) or 'postgres'}"

    def columns(self) -> list[str]:
        """Return the names of all columns."""
        with self._cursor() as cursor:
            cursor.execute(sql.SQL("SELECT * FROM {} AS data LIMIT 0").format(self._rows))
            return [column.name for column in cursor.description or ()]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows as text."""
        # A query runs as it is, since nesting need not keep its order.
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
        """Return None: only the rows identify the content."""

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
                    # Otherwise a scan of a large table starts where another one is.
                    cursor.execute("SET LOCAL synchronize_seqscans = off")
                    yield cursor
        except psycopg.Error as error:
            raise DataError(f"{self.name}: {str(error).strip()}") from error


class _CopyFile:
    """The output of COPY as a readable file."""

    def __init__(self, copy: Iterable[bytes | bytearray | memoryview]) -> None:
        self._parts = iter(copy)

    def read(self, size: int) -> bytes:
        """Return whole parts of ``size`` bytes or a few more, and none at the end."""
        found = bytearray()
        while len(found) < size and (part := next(self._parts, None)) is not None:
            found += part
        return bytes(found)


def public_dsn(dsn: str) -> str:
    """Return a DSN without its secrets: the server, the database and the user.

    Raises:
        DataError: If it is not a DSN.
    """
    try:
        parts = conninfo_to_dict(dsn)
        places = f"{parts.get('host', '')} {parts.get('dbname', '')}"
        if "@" in places or not re.fullmatch(r"[\d,]*", str(parts.get("port", ""))):
            raise psycopg.ProgrammingError("a part of the password was parsed as a host or a port")
    except psycopg.ProgrammingError:
        # Without the reason and the traceback, which may hold the password.
        raise DataError(
            "--dsn: expected postgresql://user:password@host:5432/database, "
            "the password with %40 for @, %2F for / and %3A for :"
        ) from None
    return make_conninfo(**{key: str(v) for key, v in parts.items() if key in _PUBLIC})
