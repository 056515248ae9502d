"""The archives in a model store: what the next start serves, and every version that has served."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handlers.errors import ArchiveError
from serving.archive_file import ArchiveFile

SCRATCH = ".deploying"  # a folder in each store

logger = logging.getLogger(__name__)


def stored_version(store: Path, model: str) -> str | None:
    """Return the version that the next start serves."""
    return _version(store / f"{model}.mar", model)


def staged_path(store: Path, model: str, version: str) -> Path:
    """Return the path of a version that is being deployed."""
    return store / f"{model}-{version}.mar"


def kept_path(store: Path, model: str, version: str) -> Path:
    """Return the path of the copy of a version that serves or has served."""
    return store / model / f"{version}.mar"


def keep(mar: Path, model: str, version: str) -> None:
    """Keep a copy of an archive that is about to serve: the way back to it.

    A copy, not a hard link, because ``cp`` overwrites a file in place.

    Args:
        mar: The archive, in its store.
        model: Name of the model.
        version: Version of the archive.
    """
    kept = kept_path(mar.parent, model, version)
    if kept.exists() and filecmp.cmp(mar, kept, shallow=False):
        return
    part = kept.with_name(f".{kept.name}.part")
    try:
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(mar, part)
        os.replace(part, kept)
    except OSError as error:  # such as a store that is read-only
        with suppress(OSError):
            part.unlink(missing_ok=True)
        logger.warning("%s: cannot keep a copy, the way back: %s", kept, error.strerror)


def find_kept(store: Path, model: str, version: str) -> Path | None:
    """Return the archive of a version that serves or has served, if the store still has it."""
    candidates = (store / f"{model}.mar", kept_path(store, model, version))
    return next((mar for mar in candidates if _version(mar, model) == version), None)


def stale_copies(store: Path, model: str, keep: int, kept: Collection[str]) -> list[Path]:
    """Return the copies of versions that served which need not stay, oldest first.

    Args:
        store: The model store.
        model: Name of the model.
        keep: Number of newest copies that stay.
        kept: Versions that stay; the one that the next start serves does too.
    """
    copies = sorted((store / model).glob("*.mar"), key=lambda copy: copy.stat().st_mtime)
    needed = {*kept, stored_version(store, model)}
    return [copy for copy in copies[: max(0, len(copies) - keep)] if copy.stem not in needed]


def remove_staged(store: Path, model: str) -> None:
    """Remove what a deploy of the model that was killed has left; the store is locked."""
    for mar in store.glob(f"{model}-*.mar"):
        with suppress(ArchiveError):  # not one that a deploy has staged
            if mar == staged_path(store, model, ArchiveFile.read(mar, model).version):
                mar.unlink()
    shutil.rmtree(store / SCRATCH, ignore_errors=True)


@contextmanager
def replaced(store: Path, model: str, version: str) -> Iterator[None]:
    """Make a staged version the one that the next start serves; undo it if the block fails."""
    mar, backup = store / f"{model}.mar", store / SCRATCH / f"{model}.mar"
    if mar.exists():
        shutil.copyfile(mar, backup)
    os.replace(staged_path(store, model, version), mar)
    try:
        yield
    except BaseException:
        if backup.exists():
            os.replace(backup, mar)
        else:
            mar.unlink()
        raise
    keep(mar, model, version)


def _version(mar: Path, model: str) -> str | None:
    with suppress(ArchiveError):
        return ArchiveFile.read(mar, model).version
    return None
