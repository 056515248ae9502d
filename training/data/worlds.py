"""Synthetic worlds: the default data."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """A folder to write a world to, moved to its place when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".generating-") as scratch:
        finished = Path(scratch) / folder.name
        finished.mkdir()
        yield finished
        try:
            finished.rename(folder)
        except OSError:
            if not folder.exists():  # else another run was faster, with the same rows
                raise
