"""The registry's files in an S3 bucket."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath

import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from archive.files import digest_of_stream, is_full_disk, scratch_folder
from archive.registry.contents import Document, is_archive_path, is_whole
from archive.registry.documents import COPY_FILE, REGISTRY_FILE, Entry, RegistryError
from archive.registry.folder import warn_of_unknown

# A younger archive without an entry may belong to a machine that is about to write the entry.
LEFTOVER_AGE = timedelta(days=1)
# HTTP statuses of a write whose condition, If-Match or If-None-Match, does not hold.
CONFLICT, PRECONDITION_FAILED = 409, 412


class Bucket:
    """The registry's files in an S3 bucket.

    ``registry.json`` is only replaced if it is still the version that was read (``If-Match``), and
    archives are only added (``If-None-Match``), so writers on several machines lose nothing.

    Args:
        name: Bucket name, with or without a prefix: ``models`` or ``models/ranking``.
        flags: Flags that name the registry, for messages.
    """

    def __init__(self, name: str, flags: str) -> None:
        self.name = name.removeprefix("s3://").strip("/")
        self._flags = flags
        self._s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def read(self) -> tuple[Document, str | None]:
        """Return the document and its ETag; an empty document and None if there is none yet.

        Raises:
            RegistryError: If it is not readable, or missing although there are archives.
        """
        where = self._path(REGISTRY_FILE)
        etag = self.etag()  # before the content: a newer content only makes a write fail
        text = self.text(REGISTRY_FILE)
        if text is None:
            return Document.new(self.archives(), where, self._flags), None
        return Document.from_json(text, where, self._flags), etag

    def etag(self) -> str | None:
        """Return the ETag of the document; None if there is none."""
        with self._as_registry_error():
            try:
                etag: str = self._s3.info(self._path(REGISTRY_FILE))["ETag"]
            except FileNotFoundError:
                # Tell an empty bucket from one that does not exist.
                self._s3.call_s3("head_bucket", Bucket=self.name.split("/")[0])
                return None
        return etag

    def text(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        with self._as_registry_error():
            try:
                content: bytes = self._s3.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return content

    def write(self, document: Document, etag: str | None) -> bool:
        """Replace the document, then its copy.

        Returns:
            False if another machine has replaced it since it was read.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        content = document.to_json()
        with self._as_registry_error():
            try:
                self._s3.pipe_file(self._path(REGISTRY_FILE), content, **condition)
            except OSError as error:
                if _status(error) in (CONFLICT, PRECONDITION_FAILED):
                    return False
                raise
        self.put(COPY_FILE, content)
        return True

    def begin(self) -> None:
        """Write an empty document if there is none: no archive is stored before it."""
        document, etag = self.read()
        if etag is None:
            document.bucket = self.name
            self.write(document, etag)

    def put(self, path: str, content: bytes) -> None:
        """Write or replace a file."""
        with self._as_registry_error():
            self._s3.pipe_file(self._path(path), content)

    def archives(self) -> list[str]:
        """Return the paths of all archives, oldest first."""
        with self._as_registry_error():
            found = self._s3.find(self.name, detail=True)
        oldest_first = sorted(found, key=lambda path: found[path]["LastModified"])
        paths = (PurePath(path).relative_to(self.name).as_posix() for path in oldest_first)
        return [path for path in paths if is_archive_path(path)]

    def store(self, entry: Entry, mar: Path) -> None:
        """Upload an archive and read it back.

        Raises:
            RegistryError: If what the bucket holds is another archive, or an altered one.
        """
        path = self._path(entry.path)
        with self._as_registry_error():
            is_new = True
            try:
                self._s3.put_file(str(mar), path, mode="create")
            except OSError as error:
                if _status(error) not in (CONFLICT, PRECONDITION_FAILED):
                    raise
                is_new = False
            with self._s3.open(path) as file:
                got = digest_of_stream(file)
            if got == entry.sha256:
                return
            if is_new:
                self._s3.rm_file(path)
        fix = "run it again" if is_new else "another archive has this version: train a new one"
        raise RegistryError(
            f"bucket {self.name}: {entry.path}: expected sha256 {entry.sha256[:12]}..., got "
            f"{got[:12]}...; {fix}"
        )

    def fetch(self, path: str, target: Path) -> None:
        """Download an archive."""
        with self._as_registry_error():
            self._s3.get_file(self._path(path), str(target))

    def fetched(self, path: str, scratch: Path) -> Path:
        """Return an archive as a file in a folder, which the next one replaces."""
        target = scratch / "fetched.mar"
        self.fetch(path, target)
        return target

    def prune(self, model: str, kept: Collection[str], removed: Collection[str]) -> None:
        """Delete all files of a model but those that are kept, young ones and whole archives.

        Args:
            model: Name of the model.
            kept: Paths of the files that stay.
            removed: Paths of archives that go though they are whole or young.
        """
        oldest = datetime.now(UTC) - LEFTOVER_AGE
        with self._as_registry_error(), scratch_folder("prune") as scratch:
            found = self._s3.find(self._path(model), detail=True)
            for full_path, info in found.items():
                path = PurePath(full_path).relative_to(self.name).as_posix()
                if path in kept or (path not in removed and info["LastModified"] >= oldest):
                    continue
                if path not in removed and is_whole(self.fetched(path, scratch)):
                    warn_of_unknown(f"bucket {self.name}: {path}", self._flags)
                else:
                    self._s3.rm_file(full_path)

    def _path(self, path: str) -> str:
        return f"{self.name}/{path}"

    @contextmanager
    def _as_registry_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BotoCoreError, ClientError) as error:
            if is_full_disk(error):
                raise
            raise RegistryError(
                f"bucket {self.name}: {error}; check the name, AWS_ENDPOINT_URL and the keys"
            ) from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of s3fs."""
    cause = error.__cause__ or error
    response = getattr(cause, "response", {})
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
