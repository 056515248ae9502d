"""Real databases for tests, on free ports and in temporary folders."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pymysql

from serving.ports import free_ports
from serving.process import ManagedProcess
from serving.testing import ROOT
from tests.services.s3 import START_TIMEOUT_S, STOP_TIMEOUT_S, wait_until_listening

PASSWORD = "correct horse"
# Debian does not put PostgreSQL's programs on the PATH.
POSTGRES_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
SEARCH_PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/sbin", *(str(folder) for folder in POSTGRES_FOLDERS)]
)


class NotInstalledError(Exception):
    """A server's program is not installed."""


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
        with _running("PostgreSQL", [*prefix, server, *options], folder, port):
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
def _running(name: str, command: Sequence[str], folder: Path, port: int) -> Iterator[None]:
    server = ManagedProcess.start(name, command, folder / "log", cwd=ROOT, env=os.environ)
    try:
        wait_until_listening(server, port)
        yield
    finally:
        server.process.terminate()
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
