"""Write ``registry.json`` anew, from the archives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from archive.registry.contents import Document, RegisteredModel
from archive.registry.documents import COPY_FILE, REGISTRY_FILE, Entry, RegistryError
from handlers.errors import ArchiveError


class Place(Protocol):
    """A folder or a bucket."""

    def text(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""

    def archives(self) -> list[str]:
        """Return the paths of all archives, oldest first."""

    def fetched(self, path: str, scratch: Path) -> Path:
        """Return an archive as a file."""


def rebuilt(place: Place, scratch: Path) -> tuple[Document, list[str]]:
    """Read every archive, and aliases and verdicts from what is left of the document.

    Args:
        place: The registry's folder or bucket.
        scratch: An empty folder.

    Returns:
        The document, and what is wrong with the versions that it lacks.
    """
    document = next(_readable(place), Document())
    problems = []
    found: dict[str, set[str]] = {}
    for path in place.archives():
        try:
            entry = Entry.from_archive(place.fetched(path, scratch))
            if entry.path != path:
                raise RegistryError(f"{path}: this is {entry.model} {entry.version}")
            model = document.models.setdefault(entry.model, RegisteredModel())
            model.add(entry)
        except (ArchiveError, RegistryError) as error:
            problems.append(str(error))
            continue
        found.setdefault(entry.model, set()).add(entry.version)
    for name, model in document.models.items():
        if not model.aliases():
            model.challenger = next(reversed(model.versions), None)
        for entry in model.keep(found.get(name, set())):
            problems.append(f"{name} {entry.version}: its archive is missing or altered")
    return document, problems


def _readable(place: Place) -> Iterator[Document]:
    for name in (REGISTRY_FILE, COPY_FILE):
        text = place.text(name)
        if text is not None:
            try:
                yield Document.from_json(text, name, "")
            except RegistryError:
                continue
