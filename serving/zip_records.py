"""Read a zip file only if every reader finds the same in it.

Python's ``zipfile`` trusts the directory at the end of a zip file. Java's ``ZipInputStream``, with
which TorchServe unpacks archives, reads the records one after the other and never looks at the
directory. A file with a record that the directory does not list is one archive to whoever checks
hashes in Python, and another to TorchServe. What ``make archive`` writes has one record for each
entry, in the same order, and nothing else; anything else is refused.

Format: APPNOTE.TXT of PKWARE, sections 4.3.7 (records), 4.3.12 (directory) and 4.5.3 (zip64).
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_RECORD = struct.Struct("<4s5HL2L2H")  # signature, versions and times, crc, sizes, lengths
_ZIP64 = struct.Struct("<2H2Q")  # the extra field of a record of 2 GiB and more: its sizes
_END = struct.Struct("<4s4H2LH")
_UNKNOWN_SIZE = 0xFFFFFFFF
_CHUNK_BYTES = 1 << 20


class ZipRecordsError(ValueError):
    """The file is no zip file, or readers of zip files would disagree about it."""


class ZipRecords:
    """The files in a zip file, of which directory and records are the same.

    Args:
        file: The open zip file.

    Raises:
        ZipRecordsError: If it is no such file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            with zipfile.ZipFile(file) as archive:
                entries, directory = archive.infolist(), archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise ZipRecordsError(str(error)) from error
        self._starts: dict[str, int] = {}
        self._entries: dict[str, zipfile.ZipInfo] = {}
        position = 0
        for entry in entries:
            name = entry.filename
            if name in self._entries:
                raise ZipRecordsError(f"{name} is in its directory twice")
            if entry.header_offset != position:
                raise ZipRecordsError(f"there is something before {name} that its directory lacks")
            self._entries[name] = entry
            self._starts[name] = self._check_record(entry)
            position = self._starts[name] + entry.compress_size
        if position != directory:
            raise ZipRecordsError(
                "there is something before its directory that the directory lacks"
            )
        file.seek(-_END.size, os.SEEK_END)
        signature, *_, comment_bytes = _END.unpack(file.read(_END.size))
        if signature != b"PK\5\6" or comment_bytes:
            raise ZipRecordsError("there is something behind its directory")

    @property
    def names(self) -> list[str]:
        """Names of the files, in order."""
        return list(self._entries)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            ZipRecordsError: If it is damaged.
        """
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in parts.

        Raises:
            ZipRecordsError: If it is damaged, or ends before its record does.
        """
        entry = self._entries[name]
        self._file.seek(self._starts[name])
        crc = size = 0
        for chunk in self._inflated(entry):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
            if size > entry.file_size:
                break
            yield chunk
        if (crc, size) != (entry.CRC, entry.file_size):
            raise ZipRecordsError(f"{name} is damaged")

    def _inflated(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        left, inflater = entry.compress_size, zlib.decompressobj(-zlib.MAX_WBITS)
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        while left:
            raw = self._file.read(min(left, _CHUNK_BYTES))
            if not raw:
                raise ZipRecordsError(f"{entry.filename} is cut off")
            left -= len(raw)
            if not deflated:
                yield raw
                continue
            chunk = b"more"
            while chunk or raw:
                try:
                    chunk = inflater.decompress(raw, _CHUNK_BYTES)
                except zlib.error as error:
                    raise ZipRecordsError(f"{entry.filename} is damaged: {error}") from error
                raw = inflater.unconsumed_tail
                yield chunk
        # Java reads on right behind the compressed data, wherever the directory says it ends.
        if deflated and (not inflater.eof or inflater.unused_data):
            raise ZipRecordsError(f"{entry.filename} does not end where its record ends")

    def _check_record(self, entry: zipfile.ZipInfo) -> int:
        """Compare a record with the directory; returns where its data starts."""
        name = entry.filename.encode()
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ZipRecordsError(f"{entry.filename} is compressed in another way than by deflate")
        sizes, extra = (entry.compress_size, entry.file_size), b""
        self._file.seek(entry.header_offset)
        head = self._file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            raise ZipRecordsError(f"{entry.filename} has no record")
        signature, _, flags, method, _, _, crc, *got_sizes, _, extra_bytes = _RECORD.unpack(head)
        if extra_bytes and got_sizes == [_UNKNOWN_SIZE, _UNKNOWN_SIZE]:
            extra = _ZIP64.pack(1, 2 * 8, entry.file_size, entry.compress_size)
            got_sizes = [*sizes]
        if (
            signature != b"PK\3\4"
            or flags
            or entry.flag_bits
            or method != entry.compress_type
            or crc != entry.CRC
            or got_sizes != [*sizes]
            or self._file.read(len(name) + extra_bytes) != name + extra
        ):
            raise ZipRecordsError(
                f"the record of {entry.filename} is another than its directory says"
            )
        return self._file.tell()


@contextmanager
def open_records(path: Path) -> Iterator[ZipRecords]:
    """Open a zip file, read-only.

    Raises:
        OSError: If the file cannot be read.
        ZipRecordsError: If it is no zip file, or readers of zip files would disagree about it.
    """
    with path.open("rb") as file:
        yield ZipRecords(file)
