"""Folders that appear whole or not at all."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def writing_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to write to, and move it to its place when the block succeeds.

    Args:
        folder: The place; its parents are made.
        replace: Replace a folder that is already there. Otherwise it stays: another run was
            faster, and wrote the same files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        unfinished = Path(scratch) / folder.name
        unfinished.mkdir()
        yield unfinished
        if replace and folder.exists():
            logger.warning("%s is replaced", folder)
            folder.rename(Path(scratch) / ".replaced")
        try:
            unfinished.rename(folder)
        except OSError:
            if replace or not folder.exists():
                raise
