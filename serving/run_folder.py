"""One serving instance on this machine: its settings, its ports and its run folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving.settings import ServeError

MAX_SOCKET_PATH_BYTES = 107  # sun_path has 108, one of them the closing zero


def check_socket_path(folder: Path) -> None:
    """Find out whether workers can have their sockets in a run folder.

    Raises:
        ServeError: If its path is too long.
    """
    size = len(os.fsencode(folder / ".ts.sock.65535"))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ServeError(
            f"{folder}: expected a path that leaves sockets in it {MAX_SOCKET_PATH_BYTES} bytes, "
            f"got {size}; choose a shorter TMPDIR"
        )


@contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Own a run folder while the block runs, and remove it afterwards.

    The lock on its ``pid`` file ends with its owner, so the folder of a killed instance is free.

    Raises:
        ServeError: If a live instance owns the folder, or it cannot be used.
    """
    check_socket_path(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ServeError(f"{folder}: expected a folder of yours; remove it or choose a TMPDIR")
    with (folder / "pid").open("a+") as pid_file:
        try:
            fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServeError(
                f"{folder}: an instance is running (pid {owner(folder)}); "
                "run make stop, or choose other ports"
            ) from None
        pid_file.truncate(0)  # first: until then it names the one before
        pid_file.write(str(os.getpid()))
        pid_file.flush()
        _empty(folder)
        try:
            yield
        finally:
            # The pid file last: while it is locked, nobody else takes the folder.
            _empty(folder)
            (folder / "pid").unlink()
            with suppress(OSError):  # the next instance was quick
                folder.rmdir()


def _empty(folder: Path) -> None:
    """Remove everything but the pid file."""
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.name != "pid":
            leftover.unlink(missing_ok=True)


def owner(folder: Path) -> int | None:
    """Process id of the live instance that owns a run folder, if there is one."""
    with suppress(FileNotFoundError), (folder / "pid").open() as pid_file:
        try:
            fcntl.flock(pid_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = pid_file.read()
            return int(pid) if pid else None  # it has just begun
    return None
