"""Explain text that is not UTF-8: which encoding it seems to have, and how to convert it."""

from __future__ import annotations

import codecs
import shlex
from pathlib import PurePosixPath

# Bytes to judge an encoding by, and bytes to show on each side of a wrong one.
_SAMPLE_BYTES = 1 << 16
_CONTEXT_BYTES = 12
_UTF_16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MIN_NUL_SHARE = 0.1
_MAGIC = {
    b"\x1f\x8b": "a gzip file; end its name in .gz",
    b"PAR1": "a Parquet file; end its name in .parquet",
    b"PK\x03\x04": "a zip file or an Excel workbook; extract it, or save it as CSV",
}


def check_utf8(data: bytes, end: int, place: str) -> None:
    """Raise an error if data is not text in UTF-8, or has NUL bytes as UTF-16 does.

    Args:
        data: Bytes of a file, which are judged in whole if there is an error.
        end: Number of bytes to check.
        place: Where the bytes stand, such as ``row 7``.

    Raises:
        UnicodeDecodeError: Its reason is the place.
    """
    try:
        data[:end].decode()
        wrong = data.find(b"\0", 0, end)
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise UnicodeDecodeError("utf-8", data, wrong, wrong + 1, place)


def describe_error(error: UnicodeDecodeError, path: str) -> str:
    """Describe what a file holds instead of UTF-8, and how to convert it.

    Args:
        error: The error, with the bytes around the first wrong one; the reason says where it is.
        path: Path of the file.
    """
    data = error.object[:_SAMPLE_BYTES]
    for magic, description in _MAGIC.items():
        if data.startswith(magic):
            return f"expected text in UTF-8, got {description}"
    if encoding := _utf_16(data):
        return f"expected text in UTF-8, got {encoding}; {_conversion(path, encoding)}"
    around = error.object[max(0, error.start - _CONTEXT_BYTES) : error.end + _CONTEXT_BYTES]
    got = f"byte 0x{error.object[error.start]:02x} ({error.reason}) in {around!r}"
    if b"\0" in data:
        return f"expected text in UTF-8, got {got}; it is not a text file"
    encodings = ["LATIN1", *(["GB18030"] if _is_gb18030(error) else [])]
    return (
        f"expected text in UTF-8, got {got}; it may be {' or '.join(encodings)}: "
        f"{_conversion(path, encodings[0])}"
    )


def _utf_16(data: bytes) -> str:
    """Return the name of the kind of UTF-16 that data seems to be, empty for none."""
    if data.startswith(_UTF_16_BOMS):
        return "UTF-16"
    # ASCII characters have a NUL byte each, all of them first or all of them second.
    first, second = data[::2].count(0), data[1::2].count(0)
    if max(first, second) < _MIN_NUL_SHARE * len(data) or min(first, second):
        return ""
    return "UTF-16LE" if second else "UTF-16BE"


def _is_gb18030(error: UnicodeDecodeError) -> bool:
    line_end = error.object.find(b"\n", error.start)
    line = error.object[error.start : line_end if line_end >= 0 else None]
    try:
        line.decode("gb18030")
    except UnicodeDecodeError:
        return False
    return True


def _conversion(path: str, encoding: str) -> str:
    name = PurePosixPath(path).name
    plain = PurePosixPath(name.removesuffix(".gz"))
    source, target = shlex.quote(name), shlex.quote(f"{plain.stem}.utf8{plain.suffix}")
    if name.endswith(".gz"):
        return f"convert it: gunzip -c {source} | iconv -f {encoding} -t UTF-8 > {target}"
    return f"convert it: iconv -f {encoding} -t UTF-8 {source} > {target}"
