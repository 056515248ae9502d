"""The run folder of a server: who owns it, and what it may hold."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from serving.settings import ServeError, Settings

MAX_SOCKET_PATH_BYTES = 107  # sun_path has 108, one of them the closing zero
PID_FILE = "pid"


def check_socket_path(folder: Path) -> None:
    """Check that the path of a run folder is short enough for the workers' sockets.

    Raises:
        ServeError: If it is too long.
    """
    size = len(os.fsencode(folder / ".ts.sock.65535"))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ServeError(
            f"{folder}: expected socket paths of at most {MAX_SOCKET_PATH_BYTES} bytes in it, "
            f"got {size}; choose a shorter TMPDIR"
        )


def check_writable(settings: Settings) -> None:
    """Check that a server can write its logs and its temporary files.

    Raises:
        ServeError: If it cannot.
    """
    folder = settings.log_location
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ServeError(
            f"LOG_LOCATION={folder}: expected a folder that can be written to, got: "
            f"{error.strerror}; change its owner, or run: make serve LOG_LOCATION=<folder>"
        ) from error
    asked = os.environ.get("TMPDIR")
    if asked and Path(asked).resolve() != settings.run_folder.parent:  # Python has taken another
        raise ServeError(
            f"TMPDIR={asked}: expected a folder that can be written to; free some space in it, or "
            "choose another"
        )


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Own a run folder while the block runs, then remove it.

    The kernel releases the lock on its ``pid`` file when the owner dies, so the folder of a
    killed server is free.

    Raises:
        ServeError: If a live server owns the folder, or it cannot be used.
    """
    check_socket_path(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ServeError(f"{folder}: expected a folder of yours; remove it or choose a TMPDIR")
    pid_file = folder / PID_FILE
    lock = FileLock(pid_file, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ServeError(
            f"{folder}: an instance is running (pid {owner(folder)}); "
            "run make stop, or choose other ports"
        ) from None
    try:
        pid_file.write_text(str(os.getpid()))
        _empty(folder)
        try:
            yield
        finally:
            # The pid file goes last: while it is locked, no other server takes the folder.
            _empty(folder)
            pid_file.unlink()
            with suppress(OSError):  # the next server already uses it
                folder.rmdir()
    finally:
        lock.release()


def _empty(folder: Path) -> None:
    """Remove everything but the pid file."""
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.name != PID_FILE:
            leftover.unlink(missing_ok=True)


def owner(folder: Path) -> int | None:
    """Return the process id of the live server that owns a run folder, if there is one."""
    with suppress(FileNotFoundError), (folder / PID_FILE).open() as pid_file:
        try:
            # A shared lock, which filelock lacks: two processes that look at the same time must
            # not take each other for the owner, whose pid they would then read and kill.
            fcntl.flock(pid_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = pid_file.read()
            return int(pid) if pid else None  # it has not written it yet
    return None
