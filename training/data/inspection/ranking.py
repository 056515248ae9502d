"""Propose the flags of a ranking model: label, features, times, and what to leave out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.data.inspection.columns import (
    ENTITIES,
    ITEMS,
    USERS,
    Column,
    Inspection,
    find_id,
    has_word,
    names,
)
from training.data.inspection.labels import Label, choose_label
from training.data.inspection.leaks import find_leak, ranks_by_rate

EVENT_TIMES = ("event_time", "event_timestamp", "timestamp", "ts", "time", "datetime")
# Buckets for an id that has ever new values.
HASH_BUCKETS = 1_000_000

# Fewer rows prove nothing.
_MIN_ROWS = 100
# Smaller times are days such as 20261125.
_LEAST_EPOCH = 100_000_000
# Text with this share of the values of an id, and one for each id, is another name of it.
_MIN_ALIAS = 0.95
_ODD = re.compile(r'[,"\\\x00-\x1f]|^\s|\s$')

# Flags, each with its values.
Flags = list[list[str]]


@dataclass(frozen=True)
class Ranking:
    """The columns of a ranking model.

    Attributes:
        label: What to predict; None if there is no candidate.
        features: Inputs that are numbers or categories.
        categorical: Those of them that are categories.
        hashed: Those of the categories that have too many values for a vocabulary.
        lists: Inputs that hold lists.
        times: Time columns, that of the event first.
        split_by: Time column to split by; empty if there is none, or the data is split.
        group: Id that GAUC averages over; None if there is none.
        targets: Further columns for mmoe to predict.
        left_out: Why a column is not used, by its name.
        notes: What else to know or to do.
    """

    label: Label | None
    features: Sequence[Column]
    categorical: Sequence[Column]
    hashed: Sequence[Column]
    lists: Sequence[Column]
    times: Sequence[Column]
    split_by: str
    group: Column | None
    targets: Sequence[Column]
    left_out: dict[str, str]
    notes: Sequence[str]

    def flags(self, label: Label, *, multi_task: bool = False) -> Flags:
        """Return the flags that name columns.

        Args:
            label: What to predict.
            multi_task: Predict the targets too, as mmoe does.
        """
        predicted = [["--label", label.name]]
        if multi_task:
            targets = ",".join([label.name, *(c.name for c in self.targets)])
            predicted = [["--targets", targets], ["--tasks", targets]]
        optional = {
            "--categorical": [names(self.categorical)],
            "--hash": [",".join(f"{c.name}:{HASH_BUCKETS}" for c in self.hashed)],
            "--multi": [multi(self.lists)],
            "--timestamp": [names(self.times)],
            "--timezone": [self.times[0].time_zone if self.times else ""],
            "--time-column": [self.split_by],
            "--group": [self.group.name if self.group else ""],
        }
        features = ["--features", names(self.features)]
        return [*predicted, features, *([flag, *v] for flag, v in optional.items() if any(v))]

    def row(self) -> dict[str, Any]:
        """Return a request row."""
        columns = [*self.features, *self.lists, *self.times]
        return {c.name: request_value(c) for c in columns if c.first is not None}

    def uses(self) -> dict[str, str]:
        """Return what each column is used as, by its name."""
        uses = {c.name: "time" for c in self.times} | {c.name: "list" for c in self.lists}
        uses |= {c.name: "number" for c in self.features}
        uses |= {c.name: "category" for c in self.categorical}
        uses |= {c.name: "target" for c in self.targets}
        return uses | ({self.label.column.name: "label"} if self.label else {})

    @property
    def text_only(self) -> list[str]:
        """Categories with values that are not numbers below 2^53."""
        return [c.name for c in self.categorical if c.kind != "boolean" and not c.fits_float]


def multi(lists: Sequence[Column]) -> str:
    """Return the value of ``--multi`` for columns of lists."""
    separators = [c.separator.replace(",", "comma") for c in lists]
    return ",".join(
        f"{c.name}:{separator}" if separator else c.name
        for c, separator in zip(lists, separators, strict=True)
    )


def request_value(column: Column) -> Any:
    """Return a value of the column as a request spells it."""
    value = column.first
    if column.kind == "list" and column.separator:
        return [part.strip() for part in value.split(column.separator) if part.strip()]
    is_number = column.kind == "number" and not column.is_category
    return float(value) if is_number and isinstance(value, str) else value


def propose_ranking(inspection: Inspection) -> Ranking:
    """Choose the columns of a ranking model."""
    notes: list[str] = []
    left_out = {c.name: why for c in inspection.columns if (why := _unusable(c, inspection))}
    left_out |= _aliases([c for c in inspection.columns if c.name not in left_out])
    usable = [c for c in inspection.columns if c.name not in left_out]
    ids = [c for c in (find_id(usable, USERS), find_id(usable, ITEMS)) if c]
    label = choose_label(usable, ids, notes)
    targets, codes = [], []
    if label:
        usable.remove(label.column)
        for column in usable:
            if leak := find_leak(column, label.values):
                left_out[column.name] = leak.reason
                if leak.is_outcome and _is_target(column):
                    targets.append(column)
            elif ranks_by_rate(column, label.values):
                codes.append(column)
    usable = [c for c in usable if c.name not in left_out]
    times, split_by = _times(usable, ids, left_out)
    features = [c for c in usable if c.kind not in ("time", "list")]
    categorical = [c for c in features if c in codes or c.is_category]
    notes += [
        f"{c.name}: numbers, but also {', '.join(map(repr, c.exceptions))}; empty those cells to "
        "use it as a number"
        for c in categorical
        if c.exceptions
    ]
    return Ranking(
        label=label,
        features=features,
        categorical=categorical,
        hashed=[c for c in categorical if _is_open(c, inspection)],
        lists=[c for c in usable if c.kind == "list"],
        times=times,
        split_by="" if inspection.is_split else split_by,
        group=find_id(categorical, USERS),
        targets=targets,
        left_out=left_out,
        notes=notes,
    )


def _unusable(column: Column, inspection: Inspection) -> str:
    """Return why a column is of no use whatever the label is; empty if it is not so."""
    kind = column.kind
    where = "" if inspection.is_all else f" in the first {inspection.rows:,} rows"
    if _ODD.search(column.name):
        return "rename it: flags and requests cannot hold its name"
    if kind == "constant":
        return f"always {column.first}{where}" if column.distinct else f"empty{where}"
    if kind == "other":
        if isinstance(column.first, str):
            return "text of lists: write a|b, or lists in Parquet or JSON lines"
        return "vectors or objects: write a column for each number or field"
    if kind == "integer id" and column.inexact:
        return (
            f"{column.inexact:,} of its ids are floats of 2^53 or more and have lost digits; write "
            "int64 or text"
        )
    if kind == "number" and column.numbers is not None and np.isinf(column.numbers).any():
        return "has infinite numbers: empty those cells"
    if kind == "text":
        return "text that hardly ever repeats"
    if inspection.rows < _MIN_ROWS or not column.is_unique:
        return ""
    may_repeat = not inspection.is_all and has_word(column, ENTITIES)
    if kind in ("integer id", "category") and not may_repeat:
        return f"a row id: no value repeats{where}"
    if kind == "number" and column.numbers is not None and column.missing == 0:
        steps = np.diff(column.numbers)
        return "a row number" if (steps == steps[0]).all() else ""
    return ""


def _aliases(columns: Sequence[Column]) -> dict[str, str]:
    """Find texts that are another name of an id, such as the title of a movie."""
    ids = [c for c in columns if c.kind == "integer id"]
    return {
        text.name: f"another name of {key.name}"
        for text in columns
        for key in ids
        if text.is_text and text.distinct >= _MIN_ALIAS * key.distinct and text.depends_on(key)
    }


def _is_open(column: Column, inspection: Inspection) -> bool:
    """Return whether ever new values are to be expected, more than a vocabulary can hold."""
    return not inspection.is_all and not column.repeats


def _is_target(column: Column) -> bool:
    values = column.numbers
    is_whole = column.kind in ("number", "boolean") and column.missing == 0
    return is_whole and values is not None and bool(values.min() >= 0)


def _times(
    usable: Sequence[Column], ids: Sequence[Column], left_out: dict[str, str]
) -> tuple[list[Column], str]:
    """Return the columns of times, that of the event first, and the one to split by."""
    times = [c for c in usable if c.kind == "time" and c.numbers is not None]
    # Such as a birthday: the same in all rows of an id.
    owner = {c: next((i.name for i in ids if c.depends_on(i) and i.repeats), "") for c in times}

    def rank(column: Column) -> tuple[bool, int, float]:
        name = column.name.lower()
        named = EVENT_TIMES.index(name) if name in EVENT_TIMES else len(EVENT_TIMES)
        latest = -float(np.nanmedian(column.numbers))  # type: ignore[arg-type]
        return bool(owner[column]), named, latest

    times.sort(key=rank)
    if times and owner[times[0]]:
        left_out |= {
            c.name: f"one time for each {owner[c]}, not that of an event, which --timestamp needs"
            for c in times
        }
        return [], ""
    split_by = next((c.name for c in times if c.missing == 0 and not owner[c]), "")
    for column in times:
        if np.nanmax(column.numbers) < _LEAST_EPOCH:  # type: ignore[arg-type]
            left_out[column.name] = (
                "a day as a number, which only --time-column takes; write 2026-11-25 for hour and "
                "weekday"
            )
    return [c for c in times if c.name not in left_out], split_by
