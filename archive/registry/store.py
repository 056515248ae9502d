"""The registry: the archives that may serve, and which of them does.

Its files are ``registry/registry.json`` and ``registry/<model>/<version>/<model>.mar``. A bucket
has the same layout; with one, the bucket is the truth and the folder its copy. An archive is stored
before its entry, and every file is replaced whole. So a kill leaves at most an archive without an
entry: running the same command again adds the entry. ``registry.json.copy`` is for ``rebuild``,
should ``registry.json`` get lost.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from archive.files import digest, replacing
from archive.registry.contents import Document, RegisteredModel
from archive.registry.documents import ALIASES, PREVIOUS, Entry, RegistryError, Verdict
from archive.registry.storage import Storage
from handlers.errors import ArchiveError
from serving.archive_file import ArchiveFile
from training.artifacts import check_version

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class RegistryConfig:
    """The place of the registry.

    Attributes:
        registry: Folder of the registry; by default REGISTRY, or registry/ if that is not set.
        s3_bucket: The bucket that holds the registry; the folder is then its copy. Endpoint and
            keys: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
    """

    registry: Path = field(default_factory=lambda: Path(os.environ.get("REGISTRY", "registry")))
    s3_bucket: str = ""

    def open_registry(self) -> Registry:
        """Return the registry at that place."""
        return Registry(self.registry, self.s3_bucket or None)


class Registry:
    """The archives of a folder, or of a bucket with a copy in the folder.

    Args:
        folder: Folder of the registry; made when the first archive is registered.
        bucket: Name of an S3 bucket, with or without a prefix: ``models`` or ``models/ranking``.
            Endpoint and keys come from the environment: ``AWS_ENDPOINT_URL``,
            ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``.
    """

    def __init__(self, folder: Path, bucket: str | None = None) -> None:
        self.folder = folder
        self._storage = Storage(folder, bucket)

    def listing(self) -> list[tuple[Entry, list[str]]]:
        """Return all entries with their aliases, by model, oldest first."""
        return [
            (entry, [alias for alias, named in model.aliases().items() if named == version])
            for _, model in sorted(self._storage.read().models.items())
            for version, entry in model.versions.items()
        ]

    def entry(self, model: str, version: str) -> Entry:
        """Return the entry of a version or of an alias.

        Raises:
            RegistryError: If there is none.
        """
        return self._storage.read().model(model).find(model, version)

    def has(self, model: str, version: str) -> bool:
        """Whether a version is registered."""
        return version in self._storage.read().model(model).versions

    def aliases(self, model: str) -> dict[str, str]:
        """Return versions by alias, without the aliases that stand for none.

        ``champion`` is the version that serves, ``previous`` the champion before it and
        ``challenger`` the newest version.
        """
        return self._storage.read().model(model).aliases()

    def register(self, model: str, version: str, mar: Path, *, as_challenger: bool = True) -> Entry:
        """Store an archive and add it, as the challenger unless it serves already.

        Doing it twice changes nothing.

        Raises:
            ArchiveError: If the archive is damaged.
            ArtifactError: If the version cannot stand in a URL.
            RegistryError: If the archive is of another model or version, or the version belongs
                to another archive.
        """
        if check_version(version) in ALIASES:
            raise RegistryError(f"{version} is an alias; a version needs another name")
        entry = Entry.from_archive(mar)
        if (entry.model, entry.version) != (model, version):
            raise RegistryError(
                f"{mar}: expected {model} {version}, got {entry.model} {entry.version}"
            )
        with self._storage.locked():
            known = self._storage.read().model(model).versions.get(version)
            if known is not None:
                entry.check_same(known)
            stored = self.folder / entry.path
            if not stored.exists() or digest(stored) != entry.sha256:
                with replacing(stored) as part:
                    shutil.copyfile(mar, part)
                    entry.check_file(part)
            if self._storage.bucket is not None:
                self._storage.bucket.store(entry, stored)
            if known is not None:
                self._storage.update(
                    lambda _: None
                )  # the folder's copy may be older than the bucket
                return known

            def add(document: Document) -> None:
                document.add(entry)
                if as_challenger:
                    document.models[model].challenger = version

            self._storage.update(add)
        return entry

    def fetch(self, model: str, version: str, folder: Path) -> Path:
        """Copy the archive of a version, or of an alias, into a folder.

        Returns:
            ``<folder>/<model>.mar``, which appears whole and checked or not at all.

        Raises:
            ArchiveError: If its archive is not signed, and RECMAR_PUBLIC_KEY is set.
            RegistryError: If the version is not registered, or its archive is missing or altered.
        """
        entry = self.entry(model, version)
        stored, target = self.folder / entry.path, folder / f"{model}.mar"
        with replacing(target) as part:
            if stored.exists() and (self._storage.bucket is None or digest(stored) == entry.sha256):
                shutil.copyfile(stored, part)
            elif self._storage.bucket is not None:
                self._storage.bucket.fetch(entry.path, part)
            else:
                raise RegistryError(
                    f"{stored} is missing; register {model} {entry.version} again, or name the "
                    "bucket that has it: --s3-bucket"
                )
            entry.check_file(part)
            try:
                ArchiveFile.read(part, model)
            except ArchiveError as error:
                raise ArchiveError(str(error).replace(str(part), str(stored))) from error
        return target

    def check_writable(self) -> None:
        """Check that a verdict can be recorded, before it is worked out.

        Raises:
            RegistryError: If the document is lost or not readable, or the folder is a copy of
                another bucket.
        """
        with self._storage.locked():
            pass

    def record_verdict(
        self, version: str, verdict: Verdict, archives: Mapping[str, str], report: bytes
    ) -> None:
        """Store a verdict on archives with its report, in place of an earlier one.

        Args:
            version: The version that was judged.
            verdict: What the gate says about the training run.
            archives: sha256 of each archive of the run, by model. They need not be registered yet.
            report: The report, an HTML page.
        """
        reports = {model: f"{model}/{version}/{REPORT_FILE}" for model in archives}

        def record(document: Document) -> None:
            for model, sha256 in archives.items():
                known = document.models.setdefault(model, RegisteredModel())
                known.record(sha256, replace(verdict, report=reports[model]))

        with self._storage.locked():
            for path in reports.values():
                for place in self._storage.places:
                    place.put(path, report)
            self._storage.update(record)

    def check_gate(self, model: str, version: str, ungated: str = "") -> None:
        """Check that a version, or that of an alias, may become the champion.

        A version that has been champion may: the way back must always work.

        Args:
            model: Name of the model.
            version: A version or an alias.
            ungated: Why it may without the gate's consent; empty if there is no reason.

        Raises:
            RegistryError: If the gate refused it or has not judged it, and there is no reason.
        """
        self._storage.read().model(model).check_gate(model, version, ungated)

    def promote(self, model: str, version: str, ungated: str = "") -> str:
        """Make a version, or the version of an alias, the champion; returns the version.

        Args:
            model: Name of the model.
            version: A version or an alias.
            ungated: Why it may without the gate's consent; its entry keeps the reason.
        """

        def promote(document: Document) -> str:
            known = document.model(model)
            chosen = known.find(model, version).version
            known.promote(chosen, ungated)
            return chosen

        with self._storage.locked():
            return self._storage.update(promote)

    def rollback(self, model: str) -> str:
        """Make the previous champion the champion again; returns its version."""
        with self._storage.locked():
            known = self._storage.read().model(model)
            previous, leaving = known.find(model, PREVIOUS).version, known.champions[-1]

            def rollback(document: Document) -> str:
                champions = document.model(model).champions
                # A write that succeeded but whose answer was lost has removed it already.
                if champions[-1] == leaving:
                    champions.pop()
                if champions[-1] != previous:
                    raise RegistryError(
                        f"{model}: {champions[-1]} was promoted just now; look again"
                    )
                return previous

            return self._storage.update(rollback)

    def prune(self, model: str, keep: int) -> list[Entry]:
        """Remove all but the newest versions, and leftovers of killed runs.

        Champion, previous champion and challenger always stay, and so does, with a warning, a
        whole archive without an entry.

        Args:
            model: Name of the model.
            keep: Number of newest versions that stay.

        Returns:
            The entries that were removed.

        Raises:
            RegistryError: If the registry has no such model.
        """

        def prune(document: Document) -> tuple[list[Entry], RegisteredModel]:
            if model not in document.models:  # also protects folders such as "" and ".."
                listed = ", ".join(document.models) or "none"
                raise RegistryError(f"the registry has no model {model!r}; it has {listed}")
            known = document.model(model)
            return known.prune(keep), known

        with self._storage.locked():
            # Entries go before their archives, so that no entry ever lacks its archive.
            removed, known = self._storage.update(prune)
            for place in self._storage.places:
                place.prune(model, known.paths(), known.removed)
        return removed

    def rebuild(self) -> list[str]:
        """Write the document anew, from the archives and from its copy.

        Returns:
            What is wrong with the archives that have no entry, and the entries without an archive.

        Raises:
            RegistryError: If the folder is a copy of another bucket.
        """
        return self._storage.rebuild()
