"""Real databases for tests, on free ports and in temporary folders."""

from __future__ import annotations

import getpass
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pymysql

from serving.ports import free_ports
from serving.process import ManagedProcess
from serving.testing import ROOT
from tests.services.s3 import START_TIMEOUT_S, STOP_TIMEOUT_S, wait_until_listening
from training.data.databases import MySQL, Postgres, Query
from training.data.tables import read_table

PASSWORD = "correct horse"
# Debian does not put PostgreSQL's programs on the PATH.
POSTGRES_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/sbin", *(str(folder) for folder in POSTGRES_FOLDERS)]
)


# One row each with values and without, to be written to a database, to Parquet, CSV or JSON lines.
TYPED_ROWS: list[dict[str, Any]] = [
    {
        "clicked": True,
        "small": 7,
        "big": 2**53 + 1,
        "price": Decimal("196.00"),
        "ratio": 0.1,
        "day": date(2026, 11, 25),
        "at": datetime(2026, 11, 25, 8, 0, 0, 250_000),
        "name": "NA",
        "tags": ["a", "b, c"],
    },
    {
        "clicked": False,
        "small": -7,
        "big": 7234567890123456789,
        "price": Decimal("12.50"),
        "ratio": 1e-7,
        "day": date(1999, 1, 2),
        "at": datetime(2026, 11, 25),
        "name": ' say "hi" ',
        "tags": [],
    },
    dict.fromkeys(("clicked", "small", "big", "price", "ratio", "day", "at", "name", "tags"), None),
]
_COMMON_TYPES = {
    "small": "SMALLINT",
    "big": "BIGINT",
    "price": "DECIMAL(9, 2)",
    "ratio": "DOUBLE PRECISION",
    "day": "DATE",
}
TYPES = {
    "mysql": {
        "clicked": "BOOL",
        **_COMMON_TYPES,
        "at": "DATETIME(6)",
        "name": "VARCHAR(20)",
        "tags": "JSON",
    },
    "postgres": {
        "clicked": "BOOL",
        **_COMMON_TYPES,
        "at": "TIMESTAMPTZ",
        "name": "TEXT",
        "tags": "TEXT[]",
    },
}


class NotInstalledError(Exception):
    """A server's program is not installed."""


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

    def read_back(
        self, types: Mapping[str, str], rows: Sequence[Sequence[Any]], *columns: Sequence[str]
    ) -> pd.DataFrame:
        """Write rows to a new table and read it as training does.

        Args:
            types: SQL types by column.
            rows: The rows, as the driver of the database takes them.
            columns: As for :func:`training.data.tables.read_table`.
        """
        self.create("read_back", types, rows)
        return read_table([self.source(table="read_back")], *columns)

    def create(self, name: str, types: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> None:
        """Create a table, in place of an older one of this name."""
        described = ", ".join(f"{column} {type_}" for column, type_ in types.items())
        self.execute(
            f"DROP TABLE IF EXISTS {name}",
            f"CREATE TABLE {name} ({described})",
            f"INSERT INTO {name} VALUES ({', '.join(['%s'] * len(types))})",
            rows=rows,
        )

    def create_typed(self, name: str = "typed") -> None:
        """Create a table of ``TYPED_ROWS``, each column in the type of its kind."""
        postgres = self.kind == "postgres"
        times = (None if row["at"] is None else row["at"].isoformat(" ") for row in TYPED_ROWS)
        lists = (
            row["tags"] if postgres or row["tags"] is None else json.dumps(row["tags"])
            for row in TYPED_ROWS
        )
        rows = [
            list({**row, "at": f"{time}+00" if postgres and time else time, "tags": tags}.values())
            for row, time, tags in zip(TYPED_ROWS, times, lists, strict=True)
        ]
        self.create(name, TYPES[self.kind], rows)

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


@contextmanager
def mariadb_server() -> Iterator[int]:
    """Run MariaDB while the block runs, with a database and a user ``reader`` for it.

    Yields:
        The port.
    """
    install, server = _program("mariadb-install-db"), _program("mariadbd")
    with _folder(getpass.getuser()) as folder:
        [port] = free_ports(1)
        options = ["--no-defaults", f"--datadir={folder / 'data'}", f"--user={getpass.getuser()}"]
        _run([install, *options, "--auth-root-authentication-method=normal"])
        socket = folder / "socket"
        command = [server, *options, f"--port={port}", "--bind-address=127.0.0.1"]
        command += ["--character-set-server=utf8mb4"]
        with _running("MariaDB", [*command, f"--socket={socket}"], folder, port):
            connection = pymysql.connect(unix_socket=str(socket), user="root")
            with connection, connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE recs")
                cursor.execute("CREATE USER reader@localhost IDENTIFIED BY %s", (PASSWORD,))
                cursor.execute("GRANT ALL ON recs.* TO reader@localhost")
            yield port


@contextmanager
def postgres_server() -> Iterator[int]:
    """Run PostgreSQL while the block runs, with a user ``reader`` and a database ``postgres``.

    Yields:
        The port.
    """
    initdb, server = _program("initdb"), _program("postgres")
    # It refuses to run as root.
    owner = "postgres" if os.geteuid() == 0 else getpass.getuser()
    as_owner = ["setpriv", f"--reuid={owner}", "--clear-groups", "--pdeathsig=SIGKILL"]
    with _folder(owner) as folder:
        [port] = free_ports(1)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        prefix = as_owner if os.geteuid() == 0 else []
        access = ["--username=reader", f"--pwfile={password}", "--auth=scram-sha-256"]
        _run([*prefix, initdb, f"--pgdata={folder / 'data'}", "--encoding=UTF8", *access])
        options = ["-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
        # SIGTERM would wait for clients to leave, and for the disk.
        command = [*prefix, server, *options]
        with _running("PostgreSQL", command, folder, port, stop=signal.SIGQUIT):
            _wait_until_accepting(port)
            yield port


def _wait_until_accepting(port: int) -> None:
    """Wait for PostgreSQL to accept connections: its port is open while it still starts up."""
    deadline = time.monotonic() + START_TIMEOUT_S
    url = f"postgresql://reader@127.0.0.1:{port}/postgres"
    while True:
        try:
            psycopg.connect(url, password=PASSWORD).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def _running(
    name: str, command: Sequence[str], folder: Path, port: int, stop: int = signal.SIGTERM
) -> Iterator[None]:
    server = ManagedProcess.start(name, command, folder / "log", cwd=ROOT, env=os.environ)
    try:
        wait_until_listening(server, port)
        yield
    finally:
        server.process.send_signal(stop)
        server.process.wait(STOP_TIMEOUT_S)


@contextmanager
def _folder(owner: str) -> Iterator[Path]:
    """Create a temporary folder; other users cannot enter pytest's own."""
    with tempfile.TemporaryDirectory(prefix="recmar-db-", ignore_cleanup_errors=True) as folder:
        os.chown(folder, pwd.getpwnam(owner).pw_uid, -1)
        yield Path(folder)


def _program(name: str) -> str:
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise NotInstalledError(f"no {name}: apt-get install mariadb-server postgresql")
    return path


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
