"""The one spelling of a value: from a cell, a database or JSON to a token.

Readers, vocabularies and handlers all call :func:`to_token`, so 196 in a Parquet file,
``196.00`` in a CSV file and ``"196"`` in a request are the same category. docs/data.md shows the
rules as a table.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from typing import NamedTuple

from handlers.errors import MAX_SHOWN, RowError

Id = str | int | float  # of a user, an item or a node; true is none
Token = bool | Id

# Joins the tokens of a list in a data frame; no keyboard types it.
LIST_SEPARATOR = "\x1f"

# The largest integer that is the only one to round to its float64: 2^53 + 1 becomes 2^53.
MAX_EXACT = (1 << 53) - 1

# No leading zeros and no plus sign: "007" is a code, and "+4930" the start of a phone number. An
# exponent follows one digit and has three at most: "1234567e1" and "7e211810" are hexadecimal ids.
_NUMBER = r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+|[0-9](?:\.[0-9]*)?[eE][+-]?[0-9]{1,3})"
TIME_PATTERN = (
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?"
    r" ?(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_BOOLEANS = {"true": "1", "false": "0"}
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3

_number = re.compile(_NUMBER)
_time = re.compile(TIME_PATTERN)


class LostDigitsError(ValueError):
    """A float stands for an id, but is too large for a float to hold every digit of the id."""


def to_token(value: Token | None) -> str | None:
    """Return the one spelling of a value, None if it is missing.

    - None, NaN and blank text are missing. Blanks at both ends do not count.
    - ``true`` and ``false``, in any case, are ``1`` and ``0``.
    - A number has its shortest spelling: ``196`` for 196.0, ``196.00`` and ``1.96e2``. Leading
      zeros and a plus sign make it text.
    - A date or time in ISO 8601 is a date or a UTC time: ``2026-11-25``, ``2026-11-25T08:00:00Z``.
      Without an offset it is taken as UTC.

    Raises:
        LostDigitsError: If a number of 2^53 or more is written as a float, such as 7.2e+18.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _text_token(value.strip())
    if isinstance(value, float):
        return _float_token(value)
    return str(int(value))


def row_token(value: Token | None, row: int, name: str) -> str | None:
    """Return :func:`to_token` of a value in a request.

    Args:
        value: The value.
        row: Position of its row among those that are encoded together.
        name: Name of the feature.

    Raises:
        RowError: If the value is a float of 2^53 or more.
    """
    try:
        return to_token(value)
    except LostDigitsError as error:
        shown = str(value)[:MAX_SHOWN]
        problem = f"expected an id, got {shown}: {error}; send it as an integer or as text"
        raise RowError(row, name, problem) from None


def to_text(value: Token | None) -> str | None:
    """Return :func:`to_token` of a value that is no id, such as a search query.

    A float of 2^53 or more is text like any other here, without blanks at its ends.
    """
    try:
        return to_token(value)
    except LostDigitsError:
        return str(value).strip()


def is_number(text: str) -> bool:
    """Return whether a text is a decimal number, perhaps with an exponent, as tokens spell it."""
    return bool(_number.fullmatch(text))


def fits_float(token: str) -> bool:
    """Return whether a client that sends float64 numbers only can send a token."""
    if not is_number(token):
        return False
    return abs(int(token) if token.lstrip("-").isdigit() else float(token)) <= MAX_EXACT


def hashed_id(token: str) -> str:
    """Return the integer below 2^53 that stands for a token; a token that is one stays itself.

    Any JSON client can send it, also one that sends float64 numbers only. It is the 64-bit FNV-1a
    hash (Fowler, Noll and Vo) of the token in UTF-8, without its 11 highest bits; in Go,
    ``h := fnv.New64a(); h.Write([]byte(s)); h.Sum64() & (1<<53 - 1)``.
    """
    if fits_float(token):
        return token
    value = _FNV_OFFSET
    for byte in token.encode("utf-8", "replace"):
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFFFFFFFFFF
    return str(value & MAX_EXACT)


def _text_token(text: str) -> str | None:
    if not text:
        return None
    if text[0] in "-.0123456789":
        if _number.fullmatch(text):
            return _number_token(text)
        return _time_token(text) or text
    return _BOOLEANS.get(text.lower(), text)


def _number_token(text: str) -> str | None:
    if text.lstrip("-").isdigit():
        return "0" if text == "-0" else text
    number = float(text)
    if abs(number) > MAX_EXACT and not set(text) & {".", "+"}:
        return text  # such as 9e21: programs write a large float with a point or a plus sign
    return _float_token(number)


def _float_token(value: float) -> str | None:
    if math.isnan(value):
        return None
    if abs(value) > MAX_EXACT:
        raise LostDigitsError("a float of 2^53 or more has lost digits")
    return str(int(value)) if value.is_integer() else repr(value)


def _time_token(text: str) -> str | None:
    time = parse_time(text)
    if time is None:
        return None
    fraction = f"{time.fraction:.9f}"[1:].rstrip("0").rstrip(".")
    if (time.utc.hour, time.utc.minute, time.utc.second, fraction) == (0, 0, 0, ""):
        return time.utc.date().isoformat()
    return f"{time.utc.isoformat()}{fraction}Z"


class ParsedTime(NamedTuple):
    """A time in ISO 8601.

    Attributes:
        utc: The time in UTC, without a fraction of a second. If ``is_local``, it is as written.
        fraction: The fraction of a second.
        is_local: Whether it was written without an offset from UTC.
    """

    utc: datetime
    fraction: float
    is_local: bool


def parse_time(text: str) -> ParsedTime | None:
    """Parse a date or time in ISO 8601; None if the text is none, such as February 30."""
    match = _time.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    try:
        utc = datetime(year, month, day, hour, minute, second) - _offset(match[8])
    except (ValueError, OverflowError):
        return None
    return ParsedTime(utc, float(f"0.{match[7] or 0}"), match[8] is None)


def _offset(text: str | None) -> timedelta:
    if text is None or text in ("Z", "z", "UTC"):
        return timedelta()
    hours, minutes = int(text[1:3]), int(text[-2:]) if len(text) > 3 else 0
    return timedelta(hours=hours, minutes=minutes) * (-1 if text[0] == "-" else 1)
