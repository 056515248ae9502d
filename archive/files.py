"""Files that appear whole or not at all, and their sha256."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a file to write; it replaces ``target`` when the block ends without an error.

    By then its content and its name are on the disk. A kill leaves the unfinished file, which the
    next run overwrites.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    finally:
        part.unlink(missing_ok=True)


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
