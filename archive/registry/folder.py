"""The registry's files in a folder of this machine."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from archive.files import replacing
from archive.registry.contents import Document, is_archive_path, is_whole
from archive.registry.documents import COPY_FILE, REGISTRY_FILE

logger = logging.getLogger(__name__)


class Folder:
    """The registry's files in a folder.

    Args:
        path: The folder.
        flags: Flags that name the registry, for messages.
    """

    def __init__(self, path: Path, flags: str) -> None:
        self.path = path
        self.file = path / REGISTRY_FILE
        self._flags = flags

    def read(self) -> Document:
        """Return the document; an empty one if there is none yet.

        Raises:
            RegistryError: If it is not readable, or missing although there are archives.
        """
        text = self.text(REGISTRY_FILE)
        if text is None:
            return Document.new(self.archives(), str(self.file), self._flags)
        return Document.from_json(text, str(self.file), self._flags)

    def text(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, document: Document) -> None:
        """Replace the document, then its copy."""
        for name in (REGISTRY_FILE, COPY_FILE):
            self.put(name, document.to_json())

    def put(self, path: str, content: bytes) -> None:
        """Write or replace a file."""
        with replacing(self.path / path) as part:
            part.write_bytes(content)

    def archives(self) -> list[str]:
        """Return the paths of all archives, oldest first."""
        files = sorted(self.path.glob("*/*/*.mar"), key=lambda file: file.stat().st_mtime)
        paths = (file.relative_to(self.path).as_posix() for file in files)
        return [path for path in paths if is_archive_path(path)]

    def fetched(self, path: str, _scratch: Path) -> Path:
        """Return an archive as a file."""
        return self.path / path

    def prune(self, model: str, kept: Collection[str], removed: Collection[str]) -> None:
        """Delete all files of a model but those that are kept, and whole archives.

        Args:
            model: Name of the model.
            kept: Paths of the files that stay.
            removed: Paths of archives that go though they are whole.
        """
        for file in sorted((self.path / model).rglob("*"), reverse=True):
            path = file.relative_to(self.path).as_posix()
            if file.is_dir():
                if not any(file.iterdir()):
                    file.rmdir()
            elif path not in kept:
                if path in removed or not is_whole(file):
                    file.unlink()
                else:
                    warn_of_unknown(str(file), self._flags)


def warn_of_unknown(where: str, flags: str) -> None:
    """Say that an archive has no entry, and that it stays."""
    logger.warning(
        "%s has no entry and stays; to register it, run: "
        "python -m scripts.register_model rebuild %s",
        where,
        flags,
    )
