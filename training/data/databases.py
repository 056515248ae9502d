"""Stream the rows of a table or a query from a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pymysql
from psycopg import postgres, pq, sql
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pymysql.constants import FIELD_TYPE
from pymysql.converters import encoders
from pymysql.cursors import SSCursor

from training.data.csv_stream import csv_batches
from training.data.nested import json_cells
from training.data.sources import DataError

_BATCH_ROWS = 1 << 16
CONNECT_TIMEOUT_S = 10
# A query may take minutes before its first row.
READ_TIMEOUT_S = 600
# Encoders but no decoders: cells arrive as the server's text, like those of a CSV file.
_ENCODERS: dict[Any, Any] = {**encoders}
_LONG_TEXT = (FIELD_TYPE.BLOB, FIELD_TYPE.LONG_BLOB)
# Parameters of a DSN that are not secret. Some of the many others are, and libpq may add more.
_PUBLIC = {
    *("host", "hostaddr", "port", "dbname", "user"),
    *("sslmode", "target_session_attrs", "application_name"),
}


# Converts the cells of a column as they arrive.
_Convert = Callable[[pa.Array], pa.Array]


class _Column(NamedTuple):
    """A column of a result of PostgreSQL.

    Attributes:
        name: Name without blanks at its ends.
        stored: Name in the database.
        convert: Converts cells whose text a CSV file would not have; otherwise returns them.
    """

    name: str
    stored: str
    convert: _Convert


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
        """Return the names of all columns, without blanks at their ends."""
        return [name.strip() for name in self._stored_names()]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows as text, BIT as numbers, and JSON as lists and other values."""
        # A query runs as it is, since nesting would lose its order.
        statement = self.query.statement
        if self.query.table:
            stored = {name.strip(): name for name in self._stored_names()}
            selected = ", ".join(_mysql_name(stored[name]) for name in columns)
            statement = f"SELECT {selected} FROM {_mysql_table(self.query.table)}"
        with self._cursor() as cursor:
            cursor.execute(statement)
            names = [str(column[0]).strip() for column in cursor.description]
            types: list[Any] = [column[1] for column in cursor.description]
            while rows := cursor.fetchmany(_BATCH_ROWS):
                cells = list(map(_mysql_cells, zip(*rows, strict=True), types))
                yield pa.record_batch(cells, names=names)

    def _stored_names(self) -> list[str]:
        rows = _mysql_table(self.query.table) if self.query.table else f"({self.query.statement}\n)"
        with self._cursor() as cursor:
            cursor.execute(f"SELECT * FROM {rows} AS data LIMIT 0")
            return [column[0] for column in cursor.description]

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
                # A limit that an administrator set would silently cut the data short. A TIMESTAMP
                # arrives in the time zone of the session, without naming it.
                init_command="SET SESSION sql_select_limit = 9223372036854775807, "
                "time_zone = '+00:00'",
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


def _mysql_cells(cells: Sequence[Any], field_type: int) -> pa.Array:
    if field_type == FIELD_TYPE.BIT:
        bits = (None if cell is None else str(int.from_bytes(cell)) for cell in cells)
        return pa.array(bits, pa.string())
    if field_type == FIELD_TYPE.TIMESTAMP:  # in UTC, by the time zone of the session
        return pa.array([None if cell is None else f"{cell}Z" for cell in cells], pa.string())
    if field_type == FIELD_TYPE.JSON:
        return _parse_json(cells)
    # JSON in MariaDB is a LONGTEXT, and the server does not say which of the two a column is.
    if field_type in _LONG_TEXT and all(cell is None or cell[:1] == "[" for cell in cells):
        with suppress(orjson.JSONDecodeError):
            return _parse_json(cells)
    return pa.array(cells, pa.string())


def _parse_json(cells: Iterable[str | None]) -> pa.Array:
    return json_cells([None if cell is None else orjson.loads(cell) for cell in cells])


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
        """Return the names of all columns, without blanks at their ends."""
        return [column.name for column in self._columns()]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows as text, booleans as 1 and 0, arrays and JSON as lists."""
        found = self._columns()
        by_name = {column.name: column for column in found}
        # A query runs as it is, since nesting need not keep its order.
        selected = self._rows
        if self.query.table:
            found = [by_name[name] for name in columns]
            fields = sql.SQL(", ").join(sql.Identifier(column.stored) for column in found)
            selected = sql.SQL("(SELECT {} FROM {})").format(fields, self._rows)
        names = [column.name for column in found]
        command = sql.SQL("COPY {} TO STDOUT (FORMAT csv, ENCODING 'UTF8')").format(selected)
        with self._cursor() as cursor, cursor.copy(command) as copy:
            for batch in csv_batches(_CopyFile(copy), columns, names):
                cells = [by_name[name].convert(batch.column(name)) for name in columns]
                yield pa.record_batch(cells, names=list(columns))

    def sha256(self) -> None:
        """Return None: only the rows identify the content."""

    def _columns(self) -> list[_Column]:
        with self._cursor() as cursor:
            cursor.execute(sql.SQL("SELECT * FROM {} AS data LIMIT 0").format(self._rows))
            described = [(column.name, column.type_code) for column in cursor.description or ()]
            cursor.execute(
                "SELECT oid, typelem FROM pg_catalog.pg_type "
                "WHERE typcategory = 'A' AND oid = ANY(%s)",
                ([oid for _, oid in described],),
            )
            items = dict(cursor.fetchall())
        return [
            _Column(name.strip(), name, _postgres_convert(oid, items.get(oid)))
            for name, oid in described
        ]

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
                    # Otherwise a scan of a large table starts where another one is, and times are
                    # spelled as the server, the account or PGDATESTYLE says.
                    cursor.execute(
                        "SET LOCAL synchronize_seqscans = off; "
                        "SET LOCAL datestyle = 'ISO'; SET LOCAL timezone = 'UTC'"
                    )
                    yield cursor
        except psycopg.Error as error:
            raise DataError(f"{self.name}: {str(error).strip()}") from error


def _postgres_convert(oid: int, item_oid: int | None) -> _Convert:
    """Return how to convert the text of a type.

    Args:
        oid: Number of the type.
        item_oid: Number of the type of its items if it is an array.
    """
    types = postgres.types
    if oid == types["bool"].oid:
        return lambda cells: pc.if_else(pc.equal(cells, "t"), "1", "0")
    if oid in (types["json"].oid, types["jsonb"].oid):
        return lambda cells: _parse_json(cells.to_pylist())
    if item_oid is None:
        return lambda cells: cells
    parse = Transformer().get_loader(types["text"].array_oid, pq.Format.TEXT).load
    as_bit = {"t": "1", "f": "0"} if item_oid == types["bool"].oid else {}

    def convert(cells: pa.Array) -> pa.Array:
        lists = [None if cell is None else parse(cell.encode()) for cell in cells.to_pylist()]
        if as_bit:
            lists = [cell and [as_bit.get(item, item) for item in cell] for cell in lists]
        return json_cells(lists)

    return convert


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
