"""Times: from a number or a text, in a file or in a request, to seconds since 1970 in UTC.

Shapes: B instances.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from handlers.errors import MAX_SHOWN, RowError
from handlers.values import Id, is_number, parse_time

Seconds = npt.NDArray[np.float64]

EXPECTED_TIME = "epoch seconds, epoch milliseconds or an ISO 8601 time"
HOURS, WEEKDAYS = 24, 7

_DAY_S, _HOUR_S = 86400, 3600
_THURSDAY = 3  # January 1, 1970; Monday is 0
# A number of this size or more is not in seconds but in ms, us or ns. 1e10 s is the year 2286, and
# 1e10 ms is April 1970.
_UNITS = ((1e16, 1e9), (1e13, 1e6), (1e10, 1e3))
# Offsets from UTC change on a quarter of an hour.
_OFFSET_BLOCK_S = 900
# The times that Python's datetime has: the years 1 to 9999 in UTC. Those in any time zone are a
# little fewer; offsets hardly matter to others.
_FIRST_S, _LAST_S = -62135596800, 253402300799
_FIRST_IN_ZONES_S, _LAST_IN_ZONES_S = -6.2e10, 2.5e11
# A number that would be a later time is not a time.
_MAX_S = 1e10
# Shortest age, in days: one second. A positive column can have a log scale.
_MIN_AGE = 1 / _DAY_S


class Time(NamedTuple):
    """A time that may be local.

    Attributes:
        seconds: Seconds since 1970 in UTC, or in an unknown time zone if ``is_local``.
        is_local: Whether it was written without an offset from UTC.
    """

    seconds: float
    is_local: bool


# The rows of a request usually have the same time.
@lru_cache(maxsize=1024)
def to_time(value: Id) -> Time:
    """Read a time: epoch seconds, milliseconds, micro- or nanoseconds, or ISO 8601 text.

    The size of a number tells its unit.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, str):
        text = value.strip()
        if time := parse_time(text):
            return Time(time.utc.replace(tzinfo=UTC).timestamp() + time.fraction, time.is_local)
        if not is_number(text):
            raise ValueError("neither a number nor an ISO 8601 time")
        value = float(text)
    if not abs(value) < _MAX_S * 1e9:
        raise ValueError("not finite, or beyond the year 2286")
    return Time(value / unit_of(abs(value)), is_local=False)


def unit_of(size: float) -> float:
    """Return the units per second of a time of this size: 1, 1e3, 1e6 or 1e9."""
    return next((unit for least, unit in _UNITS if size >= least), 1.0)


def to_seconds(values: Collection[Id | None], zone: tzinfo, name: str) -> Seconds:
    """Read times as UTC seconds since 1970, float64 [B]; NaN for a missing one.

    Args:
        values: Times, None or empty text for missing.
        zone: Time zone of texts without an offset.
        name: Name of the feature, for messages.

    Raises:
        RowError: If a value is not a time.
    """
    seconds = np.full(len(values), np.nan)
    is_local = np.zeros(len(values), dtype=np.bool_)
    for row, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        try:
            seconds[row], is_local[row] = to_time(value)
        except ValueError:
            shown = str(value)[:MAX_SHOWN]
            raise RowError(row, name, f"expected {EXPECTED_TIME}, got {shown}") from None
    return from_local(seconds, is_local, zone)


def from_local(seconds: Seconds, is_local: npt.NDArray[np.bool_], zone: tzinfo) -> Seconds:
    """Convert those times that are local from a time zone to UTC, in place.

    Times before the year 1 or after 9999 become the nearest one within.
    """
    if is_local.any():
        local = seconds[is_local]
        seconds[is_local] = local - _utc_offsets(local, zone, are_local=True)
    return np.clip(seconds, _FIRST_S, _LAST_S, out=seconds)


def to_iso(seconds: float) -> str:
    """Spell a time between the years 1 and 9999 so that :func:`to_time` reads it."""
    return f"{(datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat()}Z"


def calendar(seconds: Seconds, zone: tzinfo) -> npt.NDArray[np.float64]:
    """Return the hour of the day and the weekday, Monday first, float64 [B, 2]; NaN if unknown."""
    local = seconds + _utc_offsets(seconds, zone)
    hour = local // _HOUR_S % HOURS
    weekday = (local // _DAY_S + _THURSDAY) % WEEKDAYS
    return np.stack([hour, weekday], axis=1)


def age_in_days(event: Seconds, earlier: Seconds) -> Seconds:
    """Return the days from a time to the event, one second or more, float64 [B]; NaN if unknown."""
    return np.maximum((event - earlier) / _DAY_S, _MIN_AGE)


def time_zone(name: str) -> tzinfo:
    """Return a time zone by its IANA name, such as Asia/Shanghai.

    Raises:
        ValueError: If there is no such time zone.
    """
    if name == "UTC":  # needs no database of time zones
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"expected a time zone such as UTC or Asia/Shanghai, got {name!r}"
        ) from error


def _utc_offsets(seconds: Seconds, zone: tzinfo, *, are_local: bool = False) -> Any:
    """Return the offset of a time zone from UTC at each time, in seconds; 0 for a missing one."""
    if zone is UTC:
        return 0.0
    known = np.nan_to_num(seconds).clip(_FIRST_IN_ZONES_S, _LAST_IN_ZONES_S)
    blocks, block_of = np.unique(known // _OFFSET_BLOCK_S, return_inverse=True)
    offsets = []
    for block in blocks.tolist():
        time = datetime(1970, 1, 1) + timedelta(seconds=block * _OFFSET_BLOCK_S)
        time = time.replace(tzinfo=zone) if are_local else _in_zone(time, zone)
        offsets.append((time.utcoffset() or timedelta()).total_seconds())
    return np.array(offsets)[block_of]


def _in_zone(utc: datetime, zone: tzinfo) -> datetime:
    return utc.replace(tzinfo=UTC).astimezone(zone)
