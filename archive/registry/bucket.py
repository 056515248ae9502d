"""The registry's files in an S3 bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath

import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from archive.files import digest_of_stream
from archive.registry.documents import REGISTRY_FILE, Document, Entry, RegistryError

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
    """

    def __init__(self, name: str) -> None:
        self.name = name.removeprefix("s3://").strip("/")
        self._s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)

    def read(self) -> tuple[Document, str | None]:
        """Return the document and its ETag; an empty document and None if there is none yet."""
        with self._as_registry_error():
            try:
                etag = self._s3.info(self._path(REGISTRY_FILE))["ETag"]
                text = self._s3.cat_file(self._path(REGISTRY_FILE))
            except FileNotFoundError:
                # Tell an empty bucket from one that does not exist.
                self._s3.call_s3("head_bucket", Bucket=self.name.split("/")[0])
                return Document(), None
        return Document.from_json(text, self._path(REGISTRY_FILE)), etag

    def write(self, document: Document, etag: str | None) -> bool:
        """Replace the document; False if another machine has replaced it since it was read."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._as_registry_error():
            try:
                self._s3.pipe_file(self._path(REGISTRY_FILE), document.to_json(), **condition)
            except OSError as error:
                if _status(error) in (CONFLICT, PRECONDITION_FAILED):
                    return False
                raise
        return True

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

    def fetch(self, entry: Entry, target: Path) -> None:
        """Download an archive."""
        with self._as_registry_error():
            self._s3.get_file(self._path(entry.path), str(target))

    def prune(self, model: str, kept_paths: set[str], removed: list[Entry]) -> None:
        """Delete the archives of removed entries, and old archives that have no entry."""
        removed_paths = {entry.path for entry in removed}
        oldest = datetime.now(UTC) - LEFTOVER_AGE
        with self._as_registry_error():
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
    def _as_registry_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, BotoCoreError, ClientError) as error:
            raise RegistryError(
                f"bucket {self.name}: {error}; check the name, AWS_ENDPOINT_URL and the keys"
            ) from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of s3fs."""
    cause = error.__cause__ or error
    response = getattr(cause, "response", {})
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status
