"""The archives in a model store, and their replacement."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from handlers.errors import ArchiveError
from handlers.signature import verify_archive

SCRATCH = ".deploying"  # a folder in each store


def stored_version(store: Path, model: str) -> str | None:
    """Return the version that the next start serves."""
    with suppress(ArchiveError):
        return verify_archive(store / f"{model}.mar").model_version
    return None


def staged_path(store: Path, model: str, version: str) -> Path:
    """Return the path of a version that is being deployed."""
    return store / f"{model}-{version}.mar"


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
