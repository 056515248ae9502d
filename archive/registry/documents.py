"""The registry's records: an entry for each archive, and the gate's verdict on it."""

from __future__ import annotations

import getpass
import json
import os
import socket
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import msgspec

from archive.files import digest
from handlers.errors import ArchiveError, UserError
from serving.archive_file import ArchiveFile
from training.artifacts import META_PATTERN

REGISTRY_FILE = "registry.json"
COPY_FILE = "registry.json.copy"  # written after it; for rebuild
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
            ArchiveError: If the archive is damaged, or its meta file.
        """
        signature = ArchiveFile.read(mar).signature
        described = signature.to_json()
        del described["files"]
        model, version = signature.model_name, signature.model_version
        meta: dict[str, Any] = {}
        try:
            with zipfile.ZipFile(mar) as archive:
                for name in archive.namelist():
                    if PurePath(name).match(META_PATTERN) and "/" not in name:
                        meta = json.loads(archive.read(name))
            entry = cls(
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
            # What registry.json could not hold, such as NaN, would make it unreadable.
            return msgspec.json.decode(msgspec.json.encode(entry), type=cls)
        except (ValueError, AttributeError) as error:
            raise ArchiveError(
                f"{mar}: expected a {META_PATTERN} with metrics, data_sha256 and git_sha, got: "
                f"{error}; train again"
            ) from error

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
