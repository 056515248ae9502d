"""Zip files that Python and Java would read differently are refused; damaged ones never crash."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from handlers.errors import ArchiveError
from serving import zip_records
from serving.archive_file import ArchiveFile
from serving.testing import make_archive
from serving.zip_records import ZipRecords, ZipRecordsError

HANDLER = "raise AssertionError('the code must not run')"
EVIL = b"print('run before any check')"


def record(name: bytes, data: bytes) -> bytes:
    """A record as it stands before its data in a zip file, and the data."""
    head = (20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0)
    return b"PK\3\4" + struct.pack("<5H3L2H", *head) + name + data


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    """A zip file like those of ``make archive``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return bytearray(buffer.getvalue())


FILES = {"handlers/base.py": b"x = 1\n" * 100, "model.pt": random.Random(0).randbytes(3000)}


def moved(content: bytearray, where: int, extra: bytes, *, entries: bool) -> bytearray:
    """Insert bytes, and correct the positions that a directory holds behind them."""
    directory = content.rindex(b"PK\5\6")
    [start] = struct.unpack_from("<L", content, directory + 16)
    position = start
    while entries and content[position : position + 4] == b"PK\1\2":
        lengths = struct.unpack_from("<3H", content, position + 28)
        [offset] = struct.unpack_from("<L", content, position + 42)
        if offset >= where:
            struct.pack_into("<L", content, position + 42, offset + len(extra))
        position += 46 + sum(lengths)
    struct.pack_into("<L", content, directory + 16, start + len(extra))
    return content[:where] + extra + content[where:]


def with_unlisted_record_last(content: bytearray) -> bytearray:
    start = struct.unpack_from("<L", content, content.rindex(b"PK\5\6") + 16)[0]
    return moved(content, start, record(b"handlers/base.py", EVIL), entries=False)


def with_unlisted_record_first(content: bytearray) -> bytearray:
    return moved(content, 0, record(b"handlers/base.py", EVIL), entries=True)


def with_bytes_in_front(content: bytearray) -> bytearray:
    return bytearray(b"#!/bin/sh\n") + content


def with_another_name_in_the_record(content: bytearray) -> bytearray:
    return content.replace(b"handlers/base.py", b"handlers/bass.py", 1)


def with_another_size_in_the_record(content: bytearray) -> bytearray:
    struct.pack_into("<L", content, 22, 5)
    return content


def with_sizes_behind_the_data(content: bytearray) -> bytearray:
    content[6] |= 8
    return content


def with_a_comment(content: bytearray) -> bytearray:
    struct.pack_into("<H", content, len(content) - 2, 4)
    return content + b"PK\3\4"


def with_bytes_behind(content: bytearray) -> bytearray:
    return content + b"PK"


def with_data_behind_a_compressed_end(content: bytearray) -> bytearray:
    """The directory and the record agree on a size that holds a second record for Java."""
    extra = record(b"handlers/base.py", EVIL)
    [size] = struct.unpack_from("<L", content, 18)
    where = content.index(b"PK\3\4", 4)
    content = moved(content, where, extra, entries=True)
    for start, field in ((0, 18), (content.index(b"PK\1\2"), 20)):
        struct.pack_into("<L", content, start + field, size + len(extra))
    return content


def with_one_name_twice(_: bytearray) -> bytearray:
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped_pairs([*FILES.items(), ("handlers/base.py", EVIL)])


def zipped_pairs(files: list[tuple[str, bytes]]) -> bytearray:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files:
            archive.writestr(name, data)
    return bytearray(buffer.getvalue())


def with_another_compression(_: bytearray) -> bytearray:
    return zipped(FILES, zipfile.ZIP_BZIP2)


def with_a_flipped_bit_in_the_data(content: bytearray) -> bytearray:
    content[content.index(b"model.pt") + 300] ^= 1
    return content


DISAGREEING: list[tuple[Callable[[bytearray], bytearray], str]] = [
    (with_unlisted_record_last, "something before its directory that the directory lacks"),
    (with_unlisted_record_first, "something before handlers/base.py that its directory lacks"),
    (with_bytes_in_front, "something before handlers/base.py"),
    (with_another_name_in_the_record, "the record of handlers/base.py is another than"),
    (with_another_size_in_the_record, "the record of handlers/base.py is another than"),
    (with_sizes_behind_the_data, "the record of handlers/base.py is another than"),
    (with_a_comment, "something behind its directory"),
    (with_bytes_behind, "something behind its directory"),
    (with_data_behind_a_compressed_end, "handlers/base.py does not end where its record ends"),
    (with_one_name_twice, "handlers/base.py is in its directory twice"),
    (with_another_compression, "compressed in another way"),
    (with_a_flipped_bit_in_the_data, r"model\.pt is damaged"),
]


@pytest.mark.parametrize(("change", "message"), DISAGREEING)
def test_what_readers_disagree_about_is_refused(
    change: Callable[[bytearray], bytearray], message: str
) -> None:
    content = change(zipped(FILES))
    with pytest.raises(ZipRecordsError, match=message):
        read(bytes(content))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_contents_are_those_that_were_written(method: int) -> None:
    assert read(bytes(zipped({**FILES, "empty": b""}, method))) == {**FILES, "empty": b""}


def test_large_files_are_read_in_parts_and_with_their_64_bit_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(zip_records, "_CHUNK_BYTES", 1000)
    files = {"zeros": bytes(100_000), "noise": random.Random(0).randbytes(10_000)}
    content = bytes(zipped(files))
    assert b"\xff\xff\xff\xff" in content
    assert read(content) == files
    parts = ZipRecords(io.BytesIO(content)).chunks("zeros")
    assert max(map(len, parts)) == 1000


def read(content: bytes) -> dict[str, bytes]:
    records = ZipRecords(io.BytesIO(content))
    return {name: records.read(name) for name in records.names}


def test_mutated_archives_are_refused_or_read_as_before(tmp_path: Path) -> None:
    golden = '{"rows": [{"x": 1}], "predictions": [0.1]}'
    mar = make_archive(tmp_path, "first", HANDLER, golden=golden)
    expected, content = ArchiveFile.read(mar), mar.read_bytes()
    rng = random.Random(11)
    refused = 0
    for _ in range(3000):
        mar.write_bytes(mutated(content, rng))
        try:
            found = ArchiveFile.read(mar)
        except ArchiveError:
            refused += 1
        else:
            assert found == expected
    assert 2000 < refused < 3000


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, repeat or move a part of a file."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        start = rng.randrange(len(changed))
        stop = min(len(changed), start + rng.choice((1, 4, 30, 300)))
        match rng.randrange(6):
            case 0:
                changed[start] ^= 1 << rng.randrange(8)
            case 1:
                changed[start:stop] = rng.randbytes(stop - start)
            case 2:
                del changed[start:stop]
            case 3:
                changed[start:start] = changed[start:stop]
            case 4:
                changed[start:start] = record(b"handlers/base.py", EVIL)
            case 5:
                changed[start : start + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff"))
    return bytes(changed)
