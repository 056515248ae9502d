"""A ``.mar`` file, read without loading its code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from handlers.errors import ArchiveError
from handlers.signature import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    SIGNED_FILE,
    Signature,
    check_manifest,
    verify_files,
)
from serving import signing
from serving.archive_schema import (
    SIGNATURE,
    Golden,
    Manifest,
    SampleRequest,
    problems,
    read_config,
)
from serving.zip_records import ZipRecords, ZipRecordsError, open_records

CONFIG_FILE = "model-config.yaml"
SAMPLE_FILE = "sample_request.json"
DATA_FILES = (CONFIG_FILE, SAMPLE_FILE, GOLDEN_FILE)


@dataclass(frozen=True)
class ArchiveFile:
    """The contents of an archive that do not need its code.

    Attributes:
        path: The file.
        signature: Its ``signature.json``.
        config: Its ``model-config.yaml``.
        sample_request: A body that the model can answer, as JSON.
    """

    path: Path
    signature: Signature
    config: dict[str, Any]
    sample_request: str
    _golden: Golden | None

    @classmethod
    def read(cls, path: Path, model: str | None = None) -> ArchiveFile:
        """Read an archive, and check all that can be checked without loading its code.

        These are its records and directory, its hashes, its Ed25519 signature if
        ``RECMAR_PUBLIC_KEY`` is set, and the content of its JSON and YAML files.

        Args:
            path: The file.
            model: The model that it must be an archive of; None for any.

        Raises:
            ArchiveError: If it is incomplete or was altered, or something in it is wrong.
            UserError: If ``RECMAR_PUBLIC_KEY`` is not readable.
        """
        try:
            with open_records(path) as records:
                signature = _verified(records)
                texts = {n: records.read(n) for n in DATA_FILES if n in signature.files}
            archive = cls._parsed(path, signature, texts)
            if model not in (None, archive.name):
                raise ArchiveError(f"expected {model}, this is {archive.name} {archive.version}")
        except (ZipRecordsError, OSError) as error:
            raise ArchiveError(
                f"{path}: not a readable archive: {error}; run: make archive"
            ) from error
        except ArchiveError as error:
            raise ArchiveError(f"{path}: {error}; run: make archive") from error
        return archive

    @classmethod
    def _parsed(cls, path: Path, signature: Signature, texts: Mapping[str, bytes]) -> ArchiveFile:
        try:
            with _naming(CONFIG_FILE):
                config = read_config(texts[CONFIG_FILE])
            with _naming(SAMPLE_FILE):
                SampleRequest.model_validate_json(texts[SAMPLE_FILE])
        except KeyError as error:
            raise ArchiveError(f"{error.args[0]} is missing") from error
        golden = None
        if GOLDEN_FILE in texts:
            with _naming(GOLDEN_FILE):
                golden = Golden.model_validate_json(texts[GOLDEN_FILE])
        return cls(path, signature, config, texts[SAMPLE_FILE].decode().strip(), golden)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.signature.model_name

    @property
    def version(self) -> str:
        """The model's version."""
        return self.signature.model_version

    @property
    def golden(self) -> Golden:
        """Its golden rows.

        Raises:
            ArchiveError: If it has none.
        """
        if self._golden is None:
            raise ArchiveError(f"{self.path}: {GOLDEN_FILE} is missing; run: make archive")
        return self._golden


def _verified(records: ZipRecords) -> Signature:
    """Check hashes, manifest and Ed25519 signature."""
    for name in (SIGNATURE_FILE, MANIFEST_FILE):
        if name not in records.names:
            raise ArchiveError(f"{name} is missing")
    described, manifest = records.read(SIGNATURE_FILE), records.read(MANIFEST_FILE)
    signed = records.read(SIGNED_FILE) if SIGNED_FILE in records.names else None
    signing.check(described, manifest, signed, os.environ)
    with _naming(SIGNATURE_FILE):
        signature = SIGNATURE.validate_json(described)
    with _naming(MANIFEST_FILE):
        Manifest.model_validate_json(manifest)
    check_manifest(signature, manifest)
    verify_files(signature, records.names, lambda name: _sha256(records.chunks(name)))
    if signature.handler not in signature.files:
        raise ArchiveError(f"{signature.handler}, the handler, is missing")
    return signature


def _sha256(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Name the file of an archive in which something is wrong."""
    try:
        yield
    except ValidationError as error:
        raise ArchiveError(f"{file}: {problems(error)}") from error
    except ValueError as error:
        raise ArchiveError(f"{file}: {error}") from error


def sample_request(path: Path) -> bytes:
    """Read an archive's sample request only, without verifying the archive.

    Raises:
        ArchiveError: If there is none.
    """
    try:
        with open_records(path) as records:
            return records.read(SAMPLE_FILE)
    except (OSError, KeyError, ZipRecordsError) as error:
        raise ArchiveError(f"{path}: {SAMPLE_FILE}: {error}; run: make archive") from error
