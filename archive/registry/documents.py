"""The registry's records: an entry for each archive, and the aliases of each model."""

from __future__ import annotations

import getpass
import json
import os
import socket
import zipfile
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any, Literal

import msgspec

from archive.files import digest
from handlers.errors import UserError
from handlers.signature import verify_archive
from training.artifacts import META_PATTERN

REGISTRY_FILE = "registry.json"
CHAMPION, CHALLENGER, PREVIOUS = ALIASES = ("champion", "challenger", "previous")


class RegistryError(UserError):
    """The registry lacks what was asked for, or cannot do it; the message says what to do."""


@dataclass(frozen=True)
class JudgedMetric:
    """A metric of the gate's comparison; None stands for a value that is no number.

    Attributes:
        old: Value of the reference.
        new: Value of the version that was judged.
        margin: Half of the 95 % interval of the difference.
        limit: Bound on the new value; None if the metric has none.
        is_least: Whether that is a lower bound instead of an upper bound.
    """

    old: float | None
    new: float | None
    margin: float | None
    limit: float | None = None
    is_least: bool | None = None


@dataclass(frozen=True)
class Verdict:
    """What the gate says about an archive.

    Attributes:
        passed: Whether the version may ship.
        reference: The version that it was compared with, or ``baselines``.
        failures: Reasons why it may not ship.
        metrics: The metrics, with their limits.
        data_sha256: Hash of the data whose test split was used.
        judged_as: Model that was judged; a training run with several archives is judged once.
        judged_by: User and machine.
        judged_at: Time in UTC, ISO 8601.
        report: Path of the report, relative to the registry's folder or bucket.
    """

    passed: bool
    reference: str
    failures: list[str]
    metrics: dict[str, JudgedMetric]
    data_sha256: str | None
    judged_as: str
    judged_by: str
    judged_at: str
    report: str = ""


@dataclass(frozen=True)
class Entry:
    """A registered archive.

    Attributes:
        model: Model name, as in the URL.
        version: Model version, as in the URL.
        sha256: Hash of the archive.
        signature: The archive's signature, without the hashes of its files.
        metrics: Metrics on the test split of the training run.
        data_sha256: Hash of the training data.
        git_sha: Commit of the code that trained.
        registered_by: User and machine.
        registered_at: Time in UTC, ISO 8601.
        path: Path of the archive, relative to the registry's folder or bucket.
        verdict: What the gate says about it; None if it was never judged.
        ungated: Why it became champion although the gate had not passed it; empty if it did not.
    """

    model: str
    version: str
    sha256: str
    signature: dict[str, Any]
    metrics: dict[str, float]
    data_sha256: str | None
    git_sha: str | None
    registered_by: str
    registered_at: str
    path: str
    verdict: Verdict | None = None
    ungated: str = ""

    @property
    def gate(self) -> str:
        """``passed``, ``failed``, ``ungated``, or ``-`` if it was not judged."""
        if self.verdict is not None and self.verdict.passed:
            return "passed"
        if self.ungated:
            return "ungated"
        return "failed" if self.verdict is not None else "-"

    @classmethod
    def from_archive(cls, mar: Path) -> Entry:
        """Describe an archive that is about to be registered.

        Raises:
            ArchiveError: If the archive is damaged.
        """
        signature = verify_archive(mar)
        described = signature.to_json()
        del described["files"]
        meta: dict[str, Any] = {}
        with zipfile.ZipFile(mar) as archive:
            for name in archive.namelist():
                if PurePath(name).match(META_PATTERN) and "/" not in name:
                    meta = json.loads(archive.read(name))
        model, version = signature.model_name, signature.model_version
        return cls(
            model=model,
            version=version,
            sha256=digest(mar),
            signature=described,
            metrics=meta.get("metrics", {}),
            data_sha256=meta.get("data_sha256"),
            git_sha=meta.get("git_sha"),
            registered_by=whoami(),
            registered_at=now(),
            path=f"{model}/{version}/{model}.mar",
        )

    def check_same(self, known: Entry) -> None:
        """Check that this is the archive that is registered under the same version.

        Raises:
            RegistryError: If it is another one: a version never changes once it is registered.
        """
        if self.sha256 != known.sha256:
            raise RegistryError(
                f"{self.model} {self.version} is registered with sha256 {known.sha256[:12]}..., "
                f"this archive has {self.sha256[:12]}...; train again under a new version"
            )

    def check_file(self, path: Path) -> None:
        """Check that a file is this entry's archive.

        Raises:
            RegistryError: If its content is different.
        """
        got = digest(path)
        if got != self.sha256:
            raise RegistryError(
                f"{self.path} was altered: expected sha256 {self.sha256[:12]}..., "
                f"got {got[:12]}...; register {self.model} {self.version} again"
            )


@dataclass
class RegisteredModel:
    """The versions of a model and their aliases.

    Attributes:
        champions: Versions that serve or served, the current one last.
        challenger: The newest version, until it is promoted.
        versions: Entries by version, in the order of registration.
        verdicts: Verdicts on archives that are not registered, by their sha256.
    """

    champions: list[str] = field(default_factory=list)
    challenger: str | None = None
    versions: dict[str, Entry] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)

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

    def prune(self, keep: int) -> list[Entry]:
        """Remove all but the newest versions and those with an alias; returns what was removed."""
        newest = list(self.versions)[max(0, len(self.versions) - keep) :]
        kept = {*newest, *self.aliases().values()}
        removed = [entry for version, entry in self.versions.items() if version not in kept]
        self.versions = {v: entry for v, entry in self.versions.items() if v in kept}
        self.champions = [v for v in self.champions if v in kept]
        return removed

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
    def from_json(cls, text: bytes, where: str) -> Document:
        """Read the file.

        Args:
            text: Its content.
            where: Its path, for the message.

        Raises:
            RegistryError: If it is not readable.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise RegistryError(
                f"{where} is not readable: {error}; restore it from a copy"
            ) from error

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
            for entry in model.versions.values():
                self.add(entry)
            merged = self.models[name]
            merged.champions = merged.champions or model.champions
            merged.challenger = merged.challenger or model.challenger


def whoami() -> str:
    """Return the user and the machine."""
    try:
        user = getpass.getuser()
    except KeyError:  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
