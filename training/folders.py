"""Folders that appear whole or not at all, each written by one process at a time."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from handlers.errors import UserError

WRITING = ".writing-"
# Errors that name no file when a write fails.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderError(UserError):
    """A folder cannot be written; the message says what to do."""


@contextmanager
def claimed_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from making a folder while the block runs.

    Raises:
        FolderError: If there is such a folder, or another process is about to make it.
    """
    with _scratch(folder, folder.name):
        if folder.exists():
            raise _exists(folder)
        yield


@contextmanager
def writing_folder(folder: Path, *, new: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write to, and move it to its place when the block succeeds.

    Args:
        folder: The place; its parents are made.
        new: Refuse a folder that is already there. Otherwise it stays: another run was faster, and
            wrote the same files.

    Raises:
        FolderError: If the disk is full, or the folder is there and must be new.
    """
    with _scratch(folder, f"{folder.name}.{secrets.token_hex(4)}") as scratch:
        unfinished = scratch / folder.name
        try:
            unfinished.mkdir()
            yield unfinished
        except OSError as error:
            if error.errno not in _FULL or error.filename is not None:
                raise
            raise FolderError(
                f"{folder}: {error.strerror}; nothing was written: free some space, or write "
                "elsewhere, and run it again"
            ) from error
        try:
            unfinished.rename(folder)
        except OSError as error:
            if not folder.exists():
                raise
            if new:
                raise _exists(folder) from error


def _exists(folder: Path) -> FolderError:
    return FolderError(f"{folder}: is there already; choose another --version, or remove it")


@contextmanager
def _scratch(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder beside another; those of killed processes are removed."""
    parent = folder.parent
    scratch = parent / f"{WRITING}{name}"
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        with _locked(parent, wait=True):
            for left in parent.glob(f"{WRITING}*"):
                with suppress(FileNotFoundError), _locked(left, wait=False) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(left, ignore_errors=True)
            try:
                scratch.mkdir()
            except FileExistsError as error:
                raise FolderError(
                    f"{folder}: another run is writing it; wait for it, or choose another --version"
                ) from error
            stack.enter_context(_locked(scratch, wait=False))
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield scratch


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # one has content by now
        for folder in folders:
            folder.rmdir()


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Try to lock a folder while the block runs; the kernel unlocks it if this process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield lock_descriptor(descriptor, blocking=wait)
    finally:
        os.close(descriptor)
