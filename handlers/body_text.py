"""Request bodies as text: their values as the caller wrote them, and what a body is if not JSON.

The handlers and the sidecar both use it, so that they refuse the same body with the same words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from handlers.errors import MAX_SHOWN

MAX_DIGITS = 4300  # Most digits of an integer that Python and msgspec parse.

_UNCOMPRESSED = "send it uncompressed, without Content-Encoding"
# What a body that is not plain JSON begins with, what that is, and what to send instead. The mark
# of UTF-32 begins with that of UTF-16, so it comes first. The last ones are "{" without a mark.
_NOT_JSON = (
    (b"\x1f\x8b", "a gzip body", _UNCOMPRESSED),
    (b"\x28\xb5\x2f\xfd", "a zstd body", _UNCOMPRESSED),
    (b"\x78\x01", "a deflate body", _UNCOMPRESSED),
    (b"\x78\x5e", "a deflate body", _UNCOMPRESSED),
    (b"\x78\x9c", "a deflate body", _UNCOMPRESSED),
    (b"\x78\xda", "a deflate body", _UNCOMPRESSED),
    (b"\xef\xbb\xbf", "UTF-8 with a byte order mark", "send it without the mark"),
    (b"\xff\xfe\x00\x00", "UTF-32", "send UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32", "send UTF-8"),
    (b"\xff\xfe", "UTF-16", "send UTF-8"),
    (b"\xfe\xff", "UTF-16", "send UTF-8"),
    (b"{\x00\x00\x00", "UTF-32", "send UTF-8"),
    (b"\x00\x00\x00{", "UTF-32", "send UTF-8"),
    (b"{\x00", "UTF-16", "send UTF-8"),
    (b"\x00{", "UTF-16", "send UTF-8"),
)

_INDEX = re.compile(r"^\[(\d+)\]")


class Literal(str):
    """A number of a body, as the caller wrote it."""


def explain_not_json(body: bytes | bytearray, expected: str, error: Exception) -> str:
    """Describe a body that is not JSON: what it is, if its bytes reveal that, and what to send.

    Args:
        body: The body.
        expected: What was expected, such as ``JSON``.
        error: What the parser says.
    """
    for start, found, advice in _NOT_JSON:
        if body.startswith(start):
            return f"body: expected {expected}, got {found}; {advice}"
    try:
        body.decode()
    except UnicodeDecodeError as bad:
        found = f"bytes that are not UTF-8 (0x{body[bad.start]:02x} at position {bad.start})"
        return f"body: expected {expected}, got {found}; send UTF-8, uncompressed"
    return f"body: expected {expected}, got: {error}"


def parse(body: bytes | bytearray) -> Any:
    """Parse a body; a number beyond float64 becomes an infinity.

    Raises:
        msgspec.DecodeError: If it is not JSON.
        UnicodeDecodeError: If it is not UTF-8.
        RecursionError: If it is nested too deeply.
    """
    try:
        return msgspec.json.decode(body)
    except msgspec.ValidationError:  # Without a type to compare with, only a number can be wrong.
        try:
            return json.loads(body, parse_int=_integer)
        except json.JSONDecodeError as error:  # after that number
            raise msgspec.DecodeError(str(error)) from error


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)


def value_at(body: bytes | bytearray, path: str) -> Any:
    """Return the value at a path like ``data[3].user_age``, with each number as a `Literal`.

    Raises:
        LookupError: If there is no such value, for example because a key occurs twice.
        ValueError: If the body is not JSON, or there is no such value.
        TypeError: If there is no such value.
        RecursionError: If the body is nested too deeply.
    """
    value = json.loads(body, parse_float=Literal, parse_int=Literal)
    while path:
        if match := _INDEX.match(path):
            value, path = value[int(match[1])], path[match.end() :]
        else:
            path = path.removeprefix(".")
            # A key may contain any character, so take the longest key that matches.
            key = max((k for k in value if path.startswith(k)), key=len)
            value, path = value[key], path[len(key) :]
    return value


def shown(value: Any) -> str:
    """Return a result of `value_at` as JSON, clipped; numbers keep the caller's spelling.

    Raises:
        RecursionError: If the value is nested too deeply.
    """
    return clipped(_json(value))


def clipped(text: str, length: int = MAX_SHOWN) -> str:
    """Shorten a text for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def literals(value: Any) -> Iterator[Literal]:
    """Yield each number of a result of `value_at`, at any depth."""
    if isinstance(value, Literal):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from literals(item)


def _json(value: Any) -> str:
    if isinstance(value, Literal):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_json(k)}: {_json(v)}' for k, v in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
