"""Find and stream files, on this machine or in an object store that speaks S3."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from training.data.csv_stream import csv_batches, csv_columns
from training.data.encoding import check_utf8, describe_error
from training.data.nested import json_cells
from training.data.sources import SPLIT_NAMES, DataError, DataSet, Table

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz")
LOCAL = LocalFileSystem()

_BATCH_ROWS = 1 << 16
# Size of one request for a part of a remote file.
_READ_BYTES = 1 << 23
# What to do about the errors of zlib.
_GZIP_HINTS = {
    "Truncated compressed stream": "the file is incomplete; copy it again",
    "zlib inflate failed": "it is damaged, or not gzip: copy it again, or remove .gz from its name",
}


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        path: Path on ``fs``. Every method but ``open`` needs one of ``SUFFIXES``.
        fs: File system that holds it.
        name: Name to show in messages.
        separator: Character between the cells of CSV; by default a comma, in ``.tsv`` a tab.
    """

    path: str
    fs: AbstractFileSystem
    name: str
    separator: str = ""

    ordered = True

    @property
    def first_row(self) -> int:
        """Number of the first row in messages: the header of CSV is row 1."""
        return 2 if self._kind in (".csv", ".tsv") else 1

    @property
    def _kind(self) -> str:
        return PurePosixPath(self.path.removesuffix(".gz")).suffix

    @property
    def _separator(self) -> str:
        return self.separator or ("\t" if self._kind == ".tsv" else ",")

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Open the content as a binary stream, decompressed.

        Raises:
            OSError: If it cannot be read.
            DataError: If the block raises UnicodeDecodeError.
        """
        with _as_os_error(), self.fs.open(self.path, "rb", block_size=_READ_BYTES) as file:
            stream = pa.PythonFile(file)
            try:
                is_gzip = self.path.endswith(".gz")
                yield pa.CompressedInputStream(stream, "gzip") if is_gzip else stream
            except UnicodeDecodeError as error:
                raise DataError(f"{self.name}: {describe_error(error, self.path)}") from error

    def columns(self) -> list[str]:
        """Return the names of all columns; for JSON lines, those in the first batch.

        Blanks at the ends of a name do not belong to it.
        """
        with self.open() as file:
            if self._kind == ".parquet":
                return [name.strip() for name in pyarrow.parquet.read_schema(file).names]
            if self._kind == ".jsonl":
                rows = next(self._json_rows(file), None)
                if rows is None:
                    raise DataError(f"{self.name}: is empty; expected a JSON object in each line")
                return [name.strip() for name in dict.fromkeys(chain.from_iterable(rows))]
            return csv_columns(file, self._separator)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows."""
        with self.open() as file:
            if self._kind == ".parquet":
                parquet = pyarrow.parquet.ParquetFile(file)
                written = {name.strip(): name for name in parquet.schema_arrow.names}
                # A thread may still hold the file when the interpreter exits.
                for batch in parquet.iter_batches(
                    _BATCH_ROWS, columns=[written[name] for name in columns], use_threads=False
                ):
                    yield batch.rename_columns([name.strip() for name in batch.schema.names])
            elif self._kind == ".jsonl":
                for rows in self._json_rows(file):
                    written = {name.strip(): name for name in chain.from_iterable(rows)}
                    keys = [written.get(name, name) for name in columns]
                    cells = [json_cells([row.get(key) for row in rows]) for key in keys]
                    yield pa.record_batch(cells, names=list(columns))
            else:
                yield from csv_batches(file, columns, separator=self._separator)

    def sha256(self) -> str:
        """Hash the bytes; in an object store, their number and the store's tag for them."""
        if self.fs is not LOCAL:
            with _as_os_error():
                info = self.fs.info(self.path)
            return hashlib.sha256(f"{info['size']} {info['ETag']}".encode()).hexdigest()
        with self.fs.open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _json_rows(self, file: Any) -> Iterator[list[dict[str, Any]]]:
        """Parse JSON lines, a batch at a time."""
        lines = enumerate(io.BufferedReader(file), start=1)
        while batch := list(islice(lines, _BATCH_ROWS)):
            rows = []
            for number, line in batch:
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    check_utf8(line, len(line), f"row {number}")
                    raise DataError(f"{self.name}: row {number} is not JSON: {error}") from error
                if not isinstance(row, dict):
                    got = line.decode().strip()[:60]
                    raise DataError(f"{self.name}: row {number}: expected an object, got {got}")
                rows.append(row)
            yield rows


@contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:  # raised for an object store
        raise OSError(str(error)) from error
    except OSError as error:
        if hint := next((_GZIP_HINTS[text] for text in _GZIP_HINTS if text in str(error)), ""):
            raise OSError(f"{error}; {hint}") from error
        raise


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a local file into a frame.

    Arrow opens the file: its threads may hold one that pandas opened too long (`csv_stream`).
    """
    frame: pd.DataFrame = pyarrow.parquet.ParquetFile(path).read().to_pandas()
    return frame


def find(
    path: str,
    fs: AbstractFileSystem = LOCAL,
    *,
    scheme: str = "",
    stem: str = "",
    suffixes: Sequence[str] = SUFFIXES,
    separator: str = "",
) -> DataSet:
    """Find the files of a data set.

    Args:
        path: A file; a pattern such as ``clicks/2026-*.parquet``, whose files form one table, in
            the order of their names; or a folder with one file for each of train, valid and test,
            or with files that form one table.
        fs: File system that holds the path.
        scheme: Prefix of paths in messages.
        stem: Name, without suffix, of the only file to read from a folder that has it; splits are
            then not looked for.
        suffixes: Suffixes that a file may have.
        separator: As for :class:`File`.

    Raises:
        DataError: If there is no such file, or one has another suffix.
    """
    path = path.rstrip("/") or path
    try:
        with _as_os_error():
            if fs.isdir(path):
                files = _folder_files(path, fs, scheme, suffixes, separator)
                return DataSet(scheme + path, _folder_tables(scheme + path, files, stem, suffixes))
            is_pattern = any(character in path for character in "*?[") and not fs.exists(path)
            paths = sorted(fs.glob(path)) if is_pattern else [path] if fs.isfile(path) else []
    except OSError as error:
        raise DataError(f"{scheme}{path}: cannot be read: {error}") from error
    if not paths:
        raise DataError(f"{scheme}{path}: no such file")
    for found in paths:
        if not found.endswith(tuple(suffixes)):
            raise DataError(f"{scheme}{found}: expected a file ending in {', '.join(suffixes)}")
    table = [File(found, fs, scheme + found, separator) for found in paths]
    return DataSet(scheme + path, {"": table})


def _folder_files(
    path: str, fs: AbstractFileSystem, scheme: str, suffixes: Sequence[str], separator: str
) -> dict[str, File]:
    """Find the files of a folder, without those that other tools hide, such as ``_SUCCESS``."""
    found = sorted(PurePosixPath(entry).name for entry in fs.ls(path, detail=False))
    return {
        name: File(f"{path}/{name}", fs, f"{scheme}{path}/{name}", separator)
        for name in found
        if name.endswith(tuple(suffixes)) and not name.startswith((".", "_"))
    }


def _folder_tables(
    folder: str, files: dict[str, File], stem: str, suffixes: Sequence[str]
) -> dict[str, Table]:
    """Group the files of a folder by split."""
    stems = [stem] if stem else list(SPLIT_NAMES)
    named = {s: [name for name in files if name in {s + end for end in suffixes}] for s in stems}
    if files and not any(named.values()):
        return {"": list(files.values())}
    for wanted, names in named.items():
        if len(names) != 1:
            expected = ", ".join(wanted + end for end in suffixes)
            got = " and ".join(names) or "none"
            raise DataError(f"{folder}: expected one of {expected}, got {got}")
    return {"" if stem else wanted: [files[names[0]]] for wanted, names in named.items()}
