"""The registry: archives that may serve, what they are, and which of them does.

``registry/registry.json`` and ``registry/<model>/<version>/<model>.mar``; with a bucket the same
layout there, which is then what counts, and the folder is its copy. An archive is stored before
its entry and every file is replaced whole, so that a kill leaves at most an archive that no entry
names: the next run of the same command takes it over, ``prune`` removes it.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import logging
import os
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import msgspec
import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from handlers.errors import UserError
from handlers.signature import verify_archive
from training.artifacts import META_PATTERN, check_version

REGISTRY_FILE = "registry.json"
LOCK_FILE = ".lock"
CHAMPION, CHALLENGER, PREVIOUS = ALIASES = ("champion", "challenger", "previous")
WRITE_ATTEMPTS = 20
# Another machine may still be about to enter what it has just stored in the bucket.
LEFTOVER_AGE = timedelta(days=1)

T = TypeVar("T")

logger = logging.getLogger(__name__)


class RegistryError(UserError):
    """The registry lacks what was asked for, or cannot do it; the message says what to do."""


@dataclass(frozen=True)
class Entry:
    """A registered archive.

    Attributes:
        model: As in the URL.
        version: As in the URL.
        sha256: Of the archive.
        signature: What the archive says of itself, but for the hashes of its files.
        metrics: On the test split of its training run.
        data_sha256: Of the data that it was trained on.
        git_sha: Of the code that trained it.
        registered_by: User and machine.
        registered_at: UTC, ISO 8601.
        path: Of the archive, below the registry's folder or bucket.
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


@dataclass
class _Model:
    """What ``registry.json`` holds of a model.

    Attributes:
        champions: Versions that serve or served, the one that does last.
        challenger: The newest version, until it is promoted.
        versions: Entries by version, in the order of registration.
    """

    champions: list[str] = field(default_factory=list)
    challenger: str | None = None
    versions: dict[str, Entry] = field(default_factory=dict)

    def aliases(self) -> dict[str, str]:
        named = {
            CHAMPION: self.champions[-1] if self.champions else None,
            PREVIOUS: self.champions[-2] if len(self.champions) > 1 else None,
            CHALLENGER: self.challenger,
        }
        return {alias: version for alias, version in named.items() if version}

    def find(self, model: str, version: str) -> Entry:
        aliases = self.aliases()
        if version in ALIASES and version not in aliases:
            missing = "previous champion" if version == PREVIOUS else version
            raise RegistryError(f"{model} has no {missing}; {self.what_there_is()}")
        found = self.versions.get(aliases.get(version, version))
        if found is None:
            raise RegistryError(
                f"the registry has no version {version} of {model}; {self.what_there_is()}"
            )
        return found

    def what_there_is(self) -> str:
        if not self.versions:
            return "it has none; run: make register MODEL=<model> VERSION=<version>"
        aliases = "".join(f", {alias} {version}" for alias, version in self.aliases().items())
        return f"it has {', '.join(self.versions)}{aliases}"


@dataclass
class _Document:
    """``registry.json``."""

    schema_version: Literal[1] = 1
    bucket: str | None = None
    models: dict[str, _Model] = field(default_factory=dict)

    def model(self, name: str) -> _Model:
        return self.models.get(name, _Model())

    def enter(self, entry: Entry) -> None:
        model = self.models.setdefault(entry.model, _Model())
        _check_same(entry, model.versions.setdefault(entry.version, entry))

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


@dataclass(frozen=True)
class RegistryConfig:
    """Where the registry is.

    Attributes:
        registry: Its folder; REGISTRY, or else registry/, by default.
        s3_bucket: The bucket that holds it, of which the folder is then a copy. Endpoint and keys:
            AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
    """

    registry: Path = field(default_factory=lambda: Path(os.environ.get("REGISTRY", "registry")))
    s3_bucket: str = ""

    def open_registry(self) -> Registry:
        """The registry of that place."""
        return Registry(self.registry, self.s3_bucket or None)


class Registry:
    """The archives of a folder, or of a bucket with a copy in the folder.

    Args:
        folder: Made when the first archive is registered.
        bucket: Name of an S3 bucket, with a prefix or without: ``models`` or ``models/ranking``.
            Endpoint and keys come from the environment: ``AWS_ENDPOINT_URL``,
            ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``.
    """

    def __init__(self, folder: Path, bucket: str | None = None) -> None:
        self.folder = folder
        self._bucket = Bucket(bucket) if bucket else None

    def listing(self) -> list[tuple[Entry, list[str]]]:
        """All registered archives with their aliases, by model, oldest first."""
        return [
            (entry, [alias for alias, of in model.aliases().items() if of == version])
            for _, model in sorted(self._read().models.items())
            for version, entry in model.versions.items()
        ]

    def entry(self, model: str, version: str) -> Entry:
        """The entry of a version, or of an alias.

        Raises:
            RegistryError: If there is none.
        """
        return self._read().model(model).find(model, version)

    def aliases(self, model: str) -> dict[str, str]:
        """``champion`` is what serves, ``previous`` what did before it, ``challenger`` the newest.

        An alias that stands for no version is left out.
        """
        return self._read().model(model).aliases()

    def register(self, model: str, version: str, mar: Path) -> Entry:
        """Store an archive and enter it as the challenger; once is as good as twice.

        Raises:
            ArchiveError: If the archive is damaged.
            ArtifactError: If the version cannot stand in a URL.
            RegistryError: If it is not of this model and version, or the version is taken by
                another archive.
        """
        if check_version(version) in ALIASES:
            raise RegistryError(f"{version} is an alias; a version needs another name")
        entry = _describe(mar)
        if (entry.model, entry.version) != (model, version):
            raise RegistryError(
                f"{mar}: expected {model} {version}, got {entry.model} {entry.version}"
            )
        with self._locked():
            known = self._read().model(model).versions.get(version)
            if known is not None:
                _check_same(entry, known)
            stored = self.folder / entry.path
            if not stored.exists() or _digest(stored) != entry.sha256:
                with _replacing(stored) as part:
                    shutil.copyfile(mar, part)
                    _check_digest(part, entry)
            if self._bucket is not None:
                self._bucket.store(entry, stored)
            if known is not None:
                self._update(lambda _: None)  # the folder's copy may be older than the bucket
                return known

            def enter(document: _Document) -> None:
                document.enter(entry)
                document.models[model].challenger = version

            self._update(enter)
        return entry

    def fetch(self, model: str, version: str, folder: Path) -> Path:
        """Copy the archive of a version, or of an alias, into a folder.

        Returns:
            ``<folder>/<model>.mar``, which appears whole and checked or not at all.

        Raises:
            RegistryError: If it is not registered, missing or altered.
        """
        entry = self.entry(model, version)
        stored, target = self.folder / entry.path, folder / f"{model}.mar"
        with _replacing(target) as part:
            if stored.exists() and (self._bucket is None or _digest(stored) == entry.sha256):
                shutil.copyfile(stored, part)
            elif self._bucket is not None:
                self._bucket.fetch(entry, part)
            else:
                raise RegistryError(
                    f"{stored} is missing; register {model} {entry.version} again, or add the "
                    "bucket that has it"
                )
            _check_digest(part, entry)
        return target

    def promote(self, model: str, version: str) -> str:
        """Make a version, or what an alias stands for, the champion; returns the version."""

        def promote(document: _Document) -> str:
            known = document.model(model)
            chosen = known.find(model, version).version
            known.champions = [v for v in known.champions if v != chosen] + [chosen]
            if known.challenger == chosen:
                known.challenger = None
            return chosen

        with self._locked():
            return self._update(promote)

    def rollback(self, model: str) -> str:
        """Make the previous champion the champion again; returns its version."""
        with self._locked():
            known = self._read().model(model)
            previous, leaving = known.find(model, PREVIOUS).version, known.champions[-1]

            def rollback(document: _Document) -> str:
                champions = document.model(model).champions
                if champions[-1] == leaving:  # or a write whose answer was lost has done it
                    champions.pop()
                if champions[-1] != previous:
                    raise RegistryError(
                        f"{model}: {champions[-1]} was promoted just now; look again"
                    )
                return previous

            return self._update(rollback)

    def prune(self, model: str, keep: int) -> list[Entry]:
        """Remove all but the newest versions, and what killed runs left.

        Champion, previous champion and challenger stay in any case.

        Args:
            model: Its name.
            keep: How many of the newest versions stay.

        Returns:
            The entries that are gone.

        Raises:
            RegistryError: If the registry has no such model.
        """

        def prune(document: _Document) -> tuple[list[Entry], set[str]]:
            if model not in document.models:  # "" and ".." are folders too
                there = ", ".join(document.models) or "none"
                raise RegistryError(f"the registry has no model {model!r}; it has {there}")
            known = document.model(model)
            newest = list(known.versions)[max(0, len(known.versions) - keep) :]
            kept = {*newest, *known.aliases().values()}
            removed = [e for version, e in known.versions.items() if version not in kept]
            known.versions = {v: e for v, e in known.versions.items() if v in kept}
            known.champions = [v for v in known.champions if v in kept]
            return removed, {entry.path for entry in known.versions.values()}

        with self._locked():
            # Entries go before their archives: no entry ever lacks its archive.
            removed, kept_paths = self._update(prune)
            for path in sorted((self.folder / model).rglob("*"), reverse=True):
                if path.is_dir():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path.relative_to(self.folder).as_posix() not in kept_paths:
                    path.unlink()
            if self._bucket is not None:
                self._bucket.prune(model, kept_paths, removed)
        return removed

    @property
    def _file(self) -> Path:
        return self.folder / REGISTRY_FILE

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let nobody else change the folder; the lock goes with the process that holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK_FILE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("waiting for another command that changes %s", self.folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._join_bucket()
            yield

    def _join_bucket(self) -> None:
        """Take what was registered without a bucket to it, the first time that it is named."""
        document = self._read_file()
        name = self._bucket.name if self._bucket is not None else None
        if document.bucket == name or not (document.bucket or document.models):
            return
        if document.bucket is not None:
            raise RegistryError(
                f"{self._file} is a copy of the bucket {document.bucket}; add --s3-bucket "
                f"{document.bucket}, or give another folder: --registry <folder>"
            )
        assert self._bucket is not None
        for model in document.models.values():
            for entry in model.versions.values():
                stored = self.folder / entry.path
                _check_digest(stored, entry)
                self._bucket.store(entry, stored)

        def merge(shared: _Document) -> None:
            for name, model in document.models.items():
                for entry in model.versions.values():
                    shared.enter(entry)
                target = shared.models[name]
                target.champions = target.champions or model.champions
                target.challenger = target.challenger or model.challenger

        self._update(merge)

    def _read(self) -> _Document:
        return self._read_file() if self._bucket is None else self._bucket.read()[0]

    def _read_file(self) -> _Document:
        if not self._file.exists():
            return _Document()
        return _decode(self._file.read_bytes(), str(self._file))

    def _update(self, change: Callable[[_Document], T]) -> T:
        """Change the newest document, again if another machine was faster."""
        if self._bucket is None:
            document = self._read_file()
            result = change(document)
        else:
            for _ in range(WRITE_ATTEMPTS):
                document, etag = self._bucket.read()
                document.bucket = self._bucket.name
                result = change(document)
                if self._bucket.write(document, etag):
                    break
            else:
                raise RegistryError(
                    f"bucket {self._bucket.name}: {REGISTRY_FILE} was changed by others "
                    f"{WRITE_ATTEMPTS} times in a row; run it again"
                )
        with _replacing(self._file) as part:
            part.write_bytes(document.to_json())
        return result


class Bucket:
    """The registry's files in an S3 bucket.

    ``registry.json`` is only ever replaced in the version that was read (``If-Match``), archives
    are only ever added (``If-None-Match``), so writers on several machines lose nothing.

    Args:
        name: Of the bucket, with a prefix or without.
    """

    def __init__(self, name: str) -> None:
        self.name = name.removeprefix("s3://").strip("/")
        self._s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def read(self) -> tuple[_Document, str | None]:
        """The document and its ETag; an empty one and None when there is none yet."""
        with self._told():
            try:
                etag = self._s3.info(self._path(REGISTRY_FILE))["ETag"]
                text = self._s3.cat_file(self._path(REGISTRY_FILE))
            except FileNotFoundError:
                self._s3.call_s3("head_bucket", Bucket=self.name.split("/")[0])
                return _Document(), None
        return _decode(text, self._path(REGISTRY_FILE)), etag

    def write(self, document: _Document, etag: str | None) -> bool:
        """Replace the document; False if another machine did since it was read."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._told():
            try:
                self._s3.pipe_file(self._path(REGISTRY_FILE), document.to_json(), **condition)
            except OSError as error:
                if _status(error) in (409, 412):
                    return False
                raise
        return True

    def store(self, entry: Entry, mar: Path) -> None:
        """Upload an archive, and read it back."""
        path = self._path(entry.path)
        with self._told():
            is_new = True
            try:
                self._s3.put_file(str(mar), path, mode="create")
            except OSError as error:
                if _status(error) not in (409, 412):
                    raise
                is_new = False
            with self._s3.open(path) as file:
                got = _digest_of(file)
            if got == entry.sha256:
                return
            if is_new:
                self._s3.rm_file(path)
        mend = "run it again" if is_new else "another archive has this version: train a new one"
        raise RegistryError(
            f"bucket {self.name}: {entry.path}: expected sha256 {entry.sha256[:12]}..., got "
            f"{got[:12]}...; {mend}"
        )

    def fetch(self, entry: Entry, target: Path) -> None:
        """Download an archive."""
        with self._told():
            self._s3.get_file(self._path(entry.path), str(target))

    def prune(self, model: str, kept_paths: set[str], removed: list[Entry]) -> None:
        """Delete the archives of removed entries, and old ones that have no entry."""
        removed_paths = {entry.path for entry in removed}
        oldest = datetime.now(UTC) - LEFTOVER_AGE
        with self._told():
            found = self._s3.find(self._path(model), detail=True)
            for full_path, info in found.items():
                path = PurePath(full_path).relative_to(self.name).as_posix()
                if path not in kept_paths and (
                    path in removed_paths or info["LastModified"] < oldest
                ):
                    self._s3.rm_file(full_path)

    def _path(self, path: str) -> str:
        return f"{self.name}/{path}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BotoCoreError, ClientError) as error:
            raise RegistryError(
                f"bucket {self.name}: {error}; check the name, AWS_ENDPOINT_URL and the keys"
            ) from error


def _check_same(entry: Entry, known: Entry) -> None:
    """See whether two entries of a version are the same archive.

    Raises:
        RegistryError: If not: a version never changes once it is registered.
    """
    if entry.sha256 != known.sha256:
        raise RegistryError(
            f"{entry.model} {entry.version} is registered with sha256 {known.sha256[:12]}..., this "
            f"archive has {entry.sha256[:12]}...; train again under a new version"
        )


def _describe(mar: Path) -> Entry:
    """What an archive tells of itself."""
    signature = verify_archive(mar)
    told = signature.to_json()
    del told["files"]
    meta: dict[str, Any] = {}
    with zipfile.ZipFile(mar) as archive:
        for name in archive.namelist():
            if PurePath(name).match(META_PATTERN) and "/" not in name:
                meta = json.loads(archive.read(name))
    model, version = signature.model_name, signature.model_version
    return Entry(
        model=model,
        version=version,
        sha256=_digest(mar),
        signature=told,
        metrics=meta.get("metrics", {}),
        data_sha256=meta.get("data_sha256"),
        git_sha=meta.get("git_sha"),
        registered_by=f"{_user()}@{socket.gethostname()}",
        registered_at=datetime.now(UTC).isoformat(timespec="seconds"),
        path=f"{model}/{version}/{model}.mar",
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except KeyError:  # a container's user need not have a name
        return str(os.getuid())


def _decode(text: bytes, where: str) -> _Document:
    try:
        return msgspec.json.decode(text, type=_Document)
    except msgspec.DecodeError as error:
        raise RegistryError(f"{where} is not readable: {error}; restore it from a copy") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(path: Path, entry: Entry) -> None:
    got = _digest(path)
    if got != entry.sha256:
        raise RegistryError(
            f"{entry.path} was altered: expected sha256 {entry.sha256[:12]}..., got {got[:12]}...; "
            f"register {entry.model} {entry.version} again"
        )


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``target`` when the block ends well.

    It is on the disk then, as is its name; a kill leaves the part, which the next run overwrites.
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


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of s3fs."""
    cause = error.__cause__ or error
    response = getattr(cause, "response", {})
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
