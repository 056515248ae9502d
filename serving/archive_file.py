"""A ``.mar`` file, read without loading its code."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from handlers.errors import ArchiveError
from handlers.signature import GOLDEN_FILE, Signature, verify_archive

CONFIG_FILE = "model-config.yaml"
SAMPLE_FILE = "sample_request.json"


@dataclass(frozen=True)
class Golden:
    """The golden rows of an archive.

    Attributes:
        rows: Rows as in a request.
        predictions: The predictions that training computed, one per row.
    """

    rows: list[Any]
    predictions: list[Any]

    @property
    def request(self) -> bytes:
        """A request of all rows."""
        return orjson.dumps({"data": self.rows})

    @property
    def requests(self) -> list[bytes]:
        """A request of all rows, then one request per row."""
        return [self.request, *(orjson.dumps({"data": [row]}) for row in self.rows)]


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
    _golden: bytes | None

    @classmethod
    def read(cls, path: Path) -> ArchiveFile:
        """Verify an archive's hashes and read it.

        Raises:
            ArchiveError: If it is incomplete or was altered.
        """
        signature = verify_archive(path)
        with zipfile.ZipFile(path) as archive:
            files = {
                name: archive.read(name)
                for name in (CONFIG_FILE, SAMPLE_FILE, GOLDEN_FILE)
                if name in signature.files
            }
        try:
            config = yaml.safe_load(files[CONFIG_FILE]) or {}
            sample_request = files[SAMPLE_FILE].decode().strip()
        except KeyError as error:
            raise ArchiveError(f"{path}: {error.args[0]} is missing; run: make archive") from error
        except yaml.YAMLError as error:
            raise ArchiveError(f"{path}: {CONFIG_FILE}: {error}; run: make archive") from error
        return cls(path, signature, config, sample_request, files.get(GOLDEN_FILE))

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
        return Golden(**json.loads(self._golden))


def sample_request(path: Path) -> bytes:
    """Read an archive's sample request only, without verifying the archive.

    Raises:
        ArchiveError: If there is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(SAMPLE_FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{path}: {SAMPLE_FILE}: {error}; run: make archive") from error
