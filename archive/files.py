"""Files that appear whole or not at all, their sha256, and scratch folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from handlers.errors import UserError

SCRATCH_PREFIX = "recmar-scratch-"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a file to write; it replaces ``target`` when the block ends without an error.

    By then its content and its name are on the disk. A kill leaves the unfinished file, which the
    next run overwrites.

    Raises:
        UserError: If the disk is full; ``target`` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with _naming_a_full_disk(target, f"free some in {target.parent}"):
            yield part
            _sync(part)
            os.replace(part, target)
            _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder in TMPDIR, which goes when the block ends.

    The folder is locked while its process lives, so those that killed processes of this user left
    behind are known, and removed first.

    Args:
        purpose: A word for its name.

    Raises:
        UserError: If the disk is full.
    """
    parent = Path(tempfile.gettempdir())
    for leftover in parent.glob(f"{SCRATCH_PREFIX}*"):
        with ExitStack() as stack, suppress(OSError):  # it is in use, gone, or not ours
            if _lock(leftover, stack):
                shutil.rmtree(leftover, ignore_errors=True)
    with ExitStack() as stack, _naming_a_full_disk(parent, "free some, or choose another TMPDIR"):
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{purpose}-"))
            with suppress(FileNotFoundError, BlockingIOError):
                # Another process may have taken it for a leftover before it was locked.
                if _lock(folder, stack):
                    break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _lock(folder: Path, stack: ExitStack) -> bool:
    """Lock a folder until the stack closes; False if it is another user's, or was removed.

    Raises:
        OSError: If it is no folder, or another process has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    stack.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    status = os.fstat(descriptor)
    return status.st_uid == os.getuid() and os.path.samestat(status, folder.lstat())


def is_full_disk(error: Exception) -> bool:
    """Return whether an error says that there is no space left, or no more for this user."""
    if isinstance(error, shutil.Error):  # of a tree, with the text of each error
        return os.strerror(errno.ENOSPC) in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def _naming_a_full_disk(path: Path, advice: str) -> Iterator[None]:
    """Say what was written when the disk was full; the error of a write names no file."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise UserError(f"{path}: the disk is full; {advice}, and run it again") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """Return a file's sha256 in hexadecimal, without reading the whole file into memory."""
    with path.open("rb") as file:
        return digest_of_stream(file)


def digest_of_stream(file: Any) -> str:
    """Return the sha256 of what an open binary file holds."""
    return hashlib.file_digest(file, "sha256").hexdigest()
