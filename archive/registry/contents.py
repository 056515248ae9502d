"""``registry.json``: the versions of each model, their aliases and verdicts."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from archive.registry.documents import (
    ALIASES,
    CHALLENGER,
    CHAMPION,
    COPY_FILE,
    PREVIOUS,
    Entry,
    RegistryError,
    Verdict,
)

MAX_REMOVED = 100


@dataclass
class RegisteredModel:
    """The versions of a model and their aliases.

    Attributes:
        champions: Versions that serve or served, the current one last.
        challenger: The newest version, until it is promoted.
        versions: Entries by version, in the order of registration.
        verdicts: Verdicts on archives that are not registered, by their sha256.
        removed: Paths of the archives that were pruned last. A prune that was killed, or a folder
            that is a bucket's copy, may still have them.
    """

    champions: list[str] = field(default_factory=list)
    challenger: str | None = None
    versions: dict[str, Entry] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)

    def aliases(self) -> dict[str, str]:
        """Return versions by alias, without the aliases that stand for none."""
        versions = {
            CHAMPION: self.champions[-1] if self.champions else None,
            PREVIOUS: self.champions[-2] if len(self.champions) > 1 else None,
            CHALLENGER: self.challenger,
        }
        return {alias: version for alias, version in versions.items() if version}

    def find(self, model: str, version: str) -> Entry:
        """Return the entry of a version or of an alias.

        Args:
            model: The model's name, for the message.
            version: A version or an alias.

        Raises:
            RegistryError: If there is none.
        """
        aliases = self.aliases()
        if version in ALIASES and version not in aliases:
            missing = "previous champion" if version == PREVIOUS else version
            raise RegistryError(f"{model} has no {missing}; {self._summary()}")
        entry = self.versions.get(aliases.get(version, version))
        if entry is None:
            raise RegistryError(
                f"the registry has no version {version} of {model}; {self._summary()}"
            )
        return entry

    def add(self, entry: Entry) -> None:
        """Add an entry with the verdict on its archive; adding it again changes nothing.

        Raises:
            RegistryError: If the version belongs to another archive.
        """
        entry.check_same(self.versions.setdefault(entry.version, entry))
        self.removed = [path for path in self.removed if path != entry.path]
        if entry.sha256 in self.verdicts:
            self.record(entry.sha256, self.verdicts.pop(entry.sha256))

    def record(self, sha256: str, verdict: Verdict) -> None:
        """Store the verdict on an archive, in place of an earlier one."""
        for version, entry in self.versions.items():
            if entry.sha256 == sha256:
                self.versions[version] = replace(entry, verdict=verdict)
                return
        self.verdicts[sha256] = verdict

    def check_gate(self, model: str, version: str, ungated: str) -> None:
        """Check that a version may become the champion.

        A version that has been champion may: the way back must always work.

        Args:
            model: The model's name, for the message.
            version: A version or an alias.
            ungated: Why it may without the gate's consent; empty if there is no reason.

        Raises:
            RegistryError: If the gate refused it or has not judged it, and there is no reason.
        """
        entry = self.find(model, version)
        verdict = entry.verdict
        if entry.version in self.champions or ungated or (verdict and verdict.passed):
            return
        if verdict is None:
            problem = "was not judged"
            fix = f"run: make evaluate MODEL={model} VERSION={entry.version}"
        else:
            reasons = "; ".join(verdict.failures)
            problem = f"failed against {verdict.reference} on {verdict.judged_at[:10]}: {reasons}"
            fix = "train a better one"
        raise RegistryError(
            f'{model} {entry.version} {problem}; {fix}, or give a reason: --ungated "..."'
        )

    def promote(self, version: str, ungated: str = "") -> None:
        """Make a version the champion; ``ungated`` says why without the gate's consent."""
        if ungated:
            self.versions[version] = replace(self.versions[version], ungated=ungated)
        self.champions = [v for v in self.champions if v != version] + [version]
        if self.challenger == version:
            self.challenger = None

    def keep(self, kept: Collection[str]) -> list[Entry]:
        """Remove all but some versions; returns what was removed."""
        removed = [entry for version, entry in self.versions.items() if version not in kept]
        self.versions = {v: entry for v, entry in self.versions.items() if v in kept}
        self.champions = [v for v in self.champions if v in kept]
        self.challenger = self.challenger if self.challenger in kept else None
        return removed

    def prune(self, keep: int) -> list[Entry]:
        """Remove all but the newest versions and those with an alias; returns what was removed."""
        newest = list(self.versions)[max(0, len(self.versions) - keep) :]
        removed = self.keep({*newest, *self.aliases().values()})
        self.removed = [*self.removed, *(entry.path for entry in removed)][-MAX_REMOVED:]
        waiting = list(self.verdicts)[max(0, len(self.verdicts) - keep) :]
        self.verdicts = {sha256: self.verdicts[sha256] for sha256 in waiting}
        return removed

    def reports(self) -> set[str]:
        """Return the paths of the reports."""
        verdicts = [entry.verdict for entry in self.versions.values() if entry.verdict]
        return {verdict.report for verdict in (*verdicts, *self.verdicts.values())}

    def paths(self) -> set[str]:
        """Return the paths of all archives and reports."""
        return self.reports() | {entry.path for entry in self.versions.values()}

    def _summary(self) -> str:
        if not self.versions:
            return "it has none; run: make register MODEL=<model> VERSION=<version>"
        aliases = "".join(f", {alias} {version}" for alias, version in self.aliases().items())
        return f"it has {', '.join(self.versions)}{aliases}"


@dataclass
class Document:
    """``registry.json``.

    Attributes:
        schema_version: Version of this layout.
        bucket: The bucket that the file is a copy of.
        models: The registered models by name.
    """

    schema_version: Literal[1] = 1
    bucket: str | None = None
    models: dict[str, RegisteredModel] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: bytes, where: str, flags: str) -> Document:
        """Read the file.

        Args:
            text: Its content.
            where: Its path, for the message.
            flags: Flags that name the registry, for the message.

        Raises:
            RegistryError: If it is not readable.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RegistryError(f"{where} is not readable: {error}; {_rebuild(flags)}") from error

    @classmethod
    def new(cls, archives: Sequence[str], where: str, flags: str) -> Document:
        """Return the content of a registry that has no file yet.

        Args:
            archives: The archives at its place.
            where: Path of the file, for the message.
            flags: Flags that name the registry, for the message.

        Raises:
            RegistryError: If there are archives: then the file was lost.
        """
        if archives:
            raise RegistryError(
                f"{where} is missing, though there are archives, {len(archives)} of them, such as "
                f"{archives[0]}; {_rebuild(flags)}"
            )
        return cls()

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def model(self, name: str) -> RegisteredModel:
        """Return a model, without versions if it is not registered."""
        return self.models.get(name, RegisteredModel())

    def add(self, entry: Entry) -> None:
        """Add an entry; adding it again changes nothing.

        Raises:
            RegistryError: If the version belongs to another archive.
        """
        self.models.setdefault(entry.model, RegisteredModel()).add(entry)

    def merge(self, other: Document) -> None:
        """Add the entries of another document, and its aliases where this one has none.

        Raises:
            RegistryError: If a version belongs to different archives.
        """
        for name, model in other.models.items():
            merged = self.models.setdefault(name, RegisteredModel())
            merged.verdicts = model.verdicts | merged.verdicts
            for entry in model.versions.values():
                merged.add(entry)
            merged.champions = merged.champions or model.champions
            merged.challenger = merged.challenger or model.challenger


def is_archive_path(path: str) -> bool:
    """Return whether a path is of the form ``<model>/<version>/<model>.mar``."""
    parts = PurePosixPath(path).parts
    return len(parts) == 3 and parts[2] == f"{parts[0]}.mar"


def is_whole(file: Path) -> bool:
    """Return whether a file is a whole zip file, whatever it holds."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error):
        return False


def _rebuild(flags: str) -> str:
    return (
        f"run: python -m scripts.register_model rebuild {flags}, which reads the archives anew, "
        f"and aliases and verdicts from {COPY_FILE}"
    )
