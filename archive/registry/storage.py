"""Where the registry's files are, and changes of ``registry.json`` that lose nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from archive.files import scratch_folder
from archive.registry.bucket import Bucket
from archive.registry.contents import Document
from archive.registry.documents import REGISTRY_FILE, RegistryError
from archive.registry.folder import Folder
from archive.registry.rebuild import rebuilt

LOCK_FILE = ".lock"
WRITE_ATTEMPTS = 20

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Storage:
    """A folder, or a bucket with a copy in the folder.

    Args:
        folder: The folder.
        bucket: Name of the bucket, if there is one.
    """

    def __init__(self, folder: Path, bucket: str | None) -> None:
        flags = f"--registry {folder}" + (f" --s3-bucket {bucket}" if bucket else "")
        self._folder = Folder(folder, flags)
        self.bucket = Bucket(bucket, flags) if bucket else None

    @property
    def places(self) -> list[Folder | Bucket]:
        """The folder, and the bucket if there is one."""
        return [self._folder] if self.bucket is None else [self._folder, self.bucket]

    def read(self) -> Document:
        """Return the document.

        Raises:
            RegistryError: If it is not readable, or missing although there are archives.
        """
        return self._folder.read() if self.bucket is None else self.bucket.read()[0]

    def update(self, change: Callable[[Document], T]) -> T:
        """Change the newest document; repeat the change if another machine was faster."""
        if self.bucket is None:
            document = self._folder.read()
            result = change(document)
        else:
            for _ in range(WRITE_ATTEMPTS):
                document, etag = self.bucket.read()
                document.bucket = self.bucket.name
                result = change(document)
                if self.bucket.write(document, etag):
                    break
            else:
                raise RegistryError(
                    f"bucket {self.bucket.name}: {REGISTRY_FILE} was changed by others "
                    f"{WRITE_ATTEMPTS} times in a row; run it again"
                )
        self._folder.write(document)
        return result

    def rebuild(self) -> list[str]:
        """Write the document anew; see `Registry.rebuild`."""
        with self._alone(), scratch_folder("rebuild") as scratch:
            if self.bucket is None:
                document, problems = rebuilt(self._folder, scratch)
                self._check_bucket(document)
            else:
                etag = self.bucket.etag()
                document, problems = rebuilt(self.bucket, scratch)
                document.bucket = self.bucket.name
                if not self.bucket.write(document, etag):
                    raise RegistryError(
                        f"bucket {self.bucket.name}: {REGISTRY_FILE} was changed meanwhile; "
                        "run it again"
                    )
                if self._is_readable():  # a copy, which the next change replaces, or not joined yet
                    return problems
            self._folder.write(document)
        return problems

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process changes the folder, and keep others out.

        Raises:
            RegistryError: If the folder's document is not readable, or missing although there are
                archives, or it is a copy of another bucket.
        """
        with self._alone():
            # No archive is stored before there is a document, so that a lost one is noticed.
            if self._folder.text(REGISTRY_FILE) is None:
                self._folder.write(self._folder.read())
            self._join_bucket()
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder.path / LOCK_FILE)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.warning("waiting for another command that changes %s", self._folder.path)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _join_bucket(self) -> None:
        """Copy what was registered without a bucket to the bucket that is named for the first time.

        Raises:
            RegistryError: If the folder is a copy of another bucket.
        """
        document, bucket = self._folder.read(), self.bucket
        self._check_bucket(document)
        if bucket is None:
            return
        bucket.begin()
        if document.bucket is not None or not document.models:
            return
        for model in document.models.values():
            for entry in model.versions.values():
                stored = self._folder.path / entry.path
                entry.check_file(stored)
                bucket.store(entry, stored)
            for report in model.reports():
                if (content := self._folder.text(report)) is not None:
                    bucket.put(report, content)
        self.update(lambda shared: shared.merge(document))

    def _is_readable(self) -> bool:
        try:
            self._folder.read()
        except RegistryError:
            return False
        return True

    def _check_bucket(self, document: Document) -> None:
        bucket = self.bucket
        if document.bucket is not None and (bucket is None or bucket.name != document.bucket):
            raise RegistryError(
                f"{self._folder.file} is a copy of the bucket {document.bucket}; add --s3-bucket "
                f"{document.bucket}, or give another folder: --registry <folder>"
            )
