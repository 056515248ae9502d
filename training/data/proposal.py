"""Propose the flags of a ranking model for a data set: label, features, times, what to leave out.

The rules:

- label: a column of 0 and 1, or true and false, whose name has one of ``LABEL_WORDS``, the earliest
  of them; without such a name, the first such column. If there is none, a column of two texts with
  such a name, which are to be replaced by 0 and 1.
- row id: an id or text that never repeats, or a number that counts the rows.
- outcome: a column that is 0 or empty in every row whose label is 0, which is no chance; a boolean
  whose name has one of ``OUTCOME_WORDS``, or a number with one of ``AMOUNT_WORDS``. It is known
  only after the label. Amounts and booleans become further targets of mmoe.
- leak: a column that alone ranks the label with an AUC above ``MAX_AUC``.
- category: integers of 3 to ``MAX_CODES`` values that rank the label better by the rate of each
  value than by their order; rates of one half of the rows rank the other half.
- event time: of the time columns the one in ``EVENT_TIMES``, else the one with the latest times.
- group: an id in ``GROUPS`` that repeats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from handlers.values import MAX_EXACT
from training.data.inspection import ENTITIES, Column, Inspection, words
from training.metrics.ranking import auc

LABEL_WORDS = (
    *("label", "click", "clicked", "clicks", "target", "y", "converted", "conversion"),
    *("purchased", "purchase", "bought", "buy", "like", "liked"),
    *("response", "income", "outcome", "class"),
)
OUTCOME_WORDS = {*LABEL_WORDS[: LABEL_WORDS.index("response")]}
AMOUNT_WORDS = {"watch", "watched", "dwell", "gmv"}
RATING_WORDS = {"rating", "ratings", "stars"}
EVENT_TIMES = ("event_time", "event_timestamp", "timestamp", "ts", "time", "datetime")
GROUPS = ("user", "uid", "member", "customer", "visitor", "device", "session", "query")
MAX_AUC = 0.99
MAX_CODES = 30

# Fewer rows, or fewer of a label, prove nothing.
_MIN_ROWS, _MIN_LABELS = 100, 20
# Largest probability of a finding that is called no chance.
_MAX_CHANCE = 1e-6
# Rates must rank better than order by this AUC and by so many standard errors.
_MIN_GAIN, _MIN_ERRORS = 0.01, 2
# Smaller times are days such as 20261125.
_LEAST_EPOCH = 100_000_000
_ODD = re.compile(r'[,"\\\x00-\x1f]|^\s|\s$')

Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Proposal:
    """Flags of a ranking model.

    Attributes:
        label: The column to predict; None if there is no candidate.
        features: Inputs that are numbers or categories.
        categorical: Those of them that are categories.
        lists: Inputs that hold lists.
        times: Time columns, that of the event first.
        split_by: Time column to split by; empty if there is none, or the data is split.
        group: Id that GAUC averages over; empty if there is none.
        targets: Further columns for mmoe to predict.
        left_out: Why a column is not used, by its name.
        notes: What else to know or to do.
    """

    label: Column | None
    features: Sequence[Column]
    categorical: Sequence[Column]
    lists: Sequence[Column]
    times: Sequence[Column]
    split_by: str
    group: str
    targets: Sequence[Column]
    left_out: dict[str, str]
    notes: Sequence[str]

    def flags(self, *, multi_task: bool = False) -> list[list[str]]:
        """Return the flags that name columns, each with its values.

        Args:
            multi_task: Predict the targets too, as mmoe does.
        """
        label = self.label.name if self.label else "label"
        predicted = [["--label", label]]
        if multi_task:
            names = ",".join([label, *_names(self.targets)])
            predicted = [["--targets", names], ["--tasks", names]]
        lists = [c.name + (f":{c.separator}" if c.separator else "") for c in self.lists]
        optional = {
            "--categorical": [",".join(_names(self.categorical))],
            "--multi": lists,
            "--timestamp": [",".join(_names(self.times))],
            "--time-column": [self.split_by],
            "--group": [self.group],
        }
        features = ["--features", ",".join(_names(self.features))]
        return [*predicted, features, *([flag, *v] for flag, v in optional.items() if any(v))]

    @property
    def text_only(self) -> list[str]:
        """Categories with values that are not numbers below 2^53."""
        return [c.name for c in self.categorical if c.kind != "boolean" and not _fits_float(c)]


def _fits_float(column: Column) -> bool:
    values = column.numbers
    return values is not None and bool(np.nanmax(np.abs(values)) <= MAX_EXACT)


def _names(columns: Iterable[Column]) -> list[str]:
    return [column.name for column in columns]


def propose(inspection: Inspection) -> Proposal:
    """Propose the flags for a data set."""
    columns = inspection.columns
    notes: list[str] = []
    left_out = {c.name: why for c in columns if (why := _unusable(c, inspection))}
    label = _label(columns, left_out, notes)
    usable = [c for c in columns if c is not label and c.name not in left_out]
    targets = []
    codes: list[Column] = []
    if label and label.numbers is not None:
        labels = label.numbers == 1
        for column in usable:
            if why := _known_after(column, labels):
                left_out[column.name] = why
                if column.kind in ("number", "boolean") and _is_target(column):
                    targets.append(column)
            elif _ranks_by_rate(column, labels):
                codes.append(column)
    usable = [c for c in usable if c.name not in left_out]
    times, split_by = _times(usable, inspection, left_out)
    features = [c for c in usable if c.kind not in ("time", "list")]
    categorical = [c for c in features if c in codes or _is_category(c)]
    notes += [
        f"{c.name}: numbers, but also {', '.join(map(repr, c.exceptions))}; empty those cells to "
        "use it as a number"
        for c in categorical
        if c.exceptions
    ]
    return Proposal(
        label=label,
        features=features,
        categorical=categorical,
        lists=[c for c in usable if c.kind == "list"],
        times=times,
        split_by=split_by,
        group=_group(categorical),
        targets=targets,
        left_out=left_out,
        notes=notes,
    )


def _is_category(column: Column) -> bool:
    # 0 and 1 may be a number, but a request cannot send true for one.
    is_spelled = column.kind == "boolean" and type(column.first) is not int
    return column.kind in ("category", "integer id") or is_spelled


def _unusable(column: Column, inspection: Inspection) -> str:
    """Return why a column is of no use whatever the label is; empty if it is not so."""
    name, kind = column.name, column.kind
    where = "" if inspection.is_all else f" in the first {inspection.rows:,} rows"
    if _ODD.search(name):
        return "rename it: flags and requests cannot hold its name"
    if kind == "constant":
        return f"always {column.first}{where}" if column.distinct else f"empty{where}"
    if kind == "other":
        return "not a value or list of values that a feature can hold"
    if kind == "integer id" and column.inexact:
        return (
            f"{column.inexact:,} of its ids are floats beyond 2^53 and have lost digits; write "
            "int64 or text"
        )
    if kind == "text":
        return "text that hardly ever repeats"
    if inspection.rows < _MIN_ROWS or not column.is_unique:
        return ""
    may_repeat = not inspection.is_all and not ENTITIES.isdisjoint(words(name))
    if kind in ("integer id", "category") and not may_repeat:
        return f"a row id: no value repeats{where}"
    if kind == "number" and column.numbers is not None and column.missing == 0:
        steps = np.diff(column.numbers)
        return "a row number" if (steps == steps[0]).all() else ""
    return ""


def _label(columns: Sequence[Column], left_out: dict[str, str], notes: list[str]) -> Column | None:
    """Choose the column to predict; add to ``notes`` what the user has to decide or to change."""

    def rank(column: Column) -> int:
        found = [LABEL_WORDS.index(w) for w in words(column.name) if w in LABEL_WORDS]
        return min(found, default=len(LABEL_WORDS))

    usable = [c for c in columns if c.name not in left_out]
    booleans = [c for c in usable if c.kind == "boolean"]
    if booleans:
        label = min(booleans, key=rank)
        if rank(label) == len(LABEL_WORDS) and len(booleans) > 1:
            notes.append(
                f"--label: {', '.join(_names(booleans))} each hold 0 and 1, and no name tells "
                "which is the label; choose one"
            )
        if label.missing:
            notes.append(
                f"{label.name}: {label.missing:.1%} of the labels are empty; drop the rows"
            )
        return label
    pairs = [c for c in usable if c.distinct == 2 and rank(c) < len(LABEL_WORDS)]
    if not pairs:
        ratings = [c.name for c in usable if not RATING_WORDS.isdisjoint(words(c.name))]
        rating = ratings[0] if ratings else "rating"
        notes.append(f"--label: no column holds 0 and 1 only; add one, such as {rating} >= 4")
        left_out.update(dict.fromkeys(ratings, "to be turned into the label"))
        return None
    label = min(pairs, key=rank)
    notes.append(
        f"{label.name}: write 1 for what to predict, such as {label.first}, and 0 for the rest"
    )
    return label


def _known_after(column: Column, labels: Labels) -> str:
    """Return why a column is known only after the label; empty if it is not so."""
    outcomes = {"boolean": OUTCOME_WORDS, "number": AMOUNT_WORDS}.get(column.kind, set())
    if not outcomes.isdisjoint(words(column.name)):
        return "by its name, known only after the label"
    active, values = column.present, column.numbers
    if values is not None and column.kind != "time":
        active = active & (values != 0)
    n = int(active.sum())
    if not active[~labels].any() and float(labels.mean()) ** n < _MAX_CHANCE:
        return "0 or empty in every row whose label is 0: known only after it"
    if column.kind == "list":
        return ""
    if values is not None and column.kind in ("number", "time", "boolean"):
        known = ~np.isnan(values)
        found = _auc(labels[known], values[known])
    else:
        found = _rate_auc(column, labels)[0]
    found = max(found, 1 - found)
    return f"alone ranks the label with an AUC of {found:.3f}" if found > MAX_AUC else ""


def _auc(labels: Labels, scores: npt.NDArray[np.float64]) -> float:
    """Compute the AUC, 0.5 if there are too few labels of a kind."""
    n = int(labels.sum())
    return auc(labels, scores) if min(n, len(labels) - n) >= _MIN_LABELS else 0.5


def _halves(n: int) -> tuple[Labels, Labels]:
    chosen = np.random.default_rng(0).random(n) < 0.5
    return chosen, ~chosen


def _rate_auc(column: Column, labels: Labels) -> tuple[float, float]:
    """Compute the AUC of each value's rate and, of numbers, that of their order, on one half."""
    fitted, tested = _halves(len(labels))
    # Code -1 is the last one: a missing value is a value too.
    rows, hits = (
        np.bincount(column.codes[chosen] + 1, minlength=column.distinct + 1)
        for chosen in (fitted, fitted & labels)
    )
    rates = (hits + labels.mean()) / (rows + 1)
    by_rate = _auc(labels[tested], rates[column.codes[tested] + 1])
    if column.numbers is None:
        return by_rate, 0.5
    tested &= column.present
    by_order = _auc(labels[tested], column.numbers[tested])
    return by_rate, max(by_order, 1 - by_order)


def _ranks_by_rate(column: Column, labels: Labels) -> bool:
    values = column.numbers
    if column.kind != "number" or values is None or not 3 <= column.distinct <= MAX_CODES:
        return False
    if (values[column.present] % 1 != 0).any():
        return False
    by_rate, by_order = _rate_auc(column, labels)
    n = len(labels) * float(labels.mean()) * (1 - float(labels.mean())) / 2
    # Standard error of an AUC of one half (Hanley and McNeil, 1982).
    error = 1 / np.sqrt(12 * max(n, 1))
    return bool(by_rate - by_order > max(_MIN_GAIN, _MIN_ERRORS * error))


def _is_target(column: Column) -> bool:
    values = column.numbers
    return values is not None and column.missing == 0 and bool(values.min() >= 0)


def _times(
    usable: Sequence[Column], inspection: Inspection, left_out: dict[str, str]
) -> tuple[list[Column], str]:
    """Return the columns of times, that of the event first, and the one to split by."""
    times = [c for c in usable if c.kind == "time" and c.numbers is not None]

    def rank(column: Column) -> tuple[int, float]:
        name = column.name.lower()
        named = EVENT_TIMES.index(name) if name in EVENT_TIMES else len(EVENT_TIMES)
        return named, -float(np.nanmedian(column.numbers))  # type: ignore[arg-type]

    times.sort(key=rank)
    is_whole = [c for c in times if c.missing == 0]
    split_by = is_whole[0].name if is_whole and not inspection.is_split else ""
    for column in times:
        if np.nanmax(column.numbers) < _LEAST_EPOCH:  # type: ignore[arg-type]
            left_out[column.name] = (
                "a day as a number, which only --time-column takes; write 2026-11-25 for hour and "
                "weekday"
            )
    return [c for c in times if c.name not in left_out], split_by


def _group(categorical: Sequence[Column]) -> str:
    """Return the id that GAUC averages over."""

    def rank(column: Column) -> int:
        stems = {re.sub("(?<=.)ids?$", "", word) for word in words(column.name)}
        found = [GROUPS.index(word) for word in stems | set(words(column.name)) if word in GROUPS]
        return min(found, default=len(GROUPS))

    ids = [c for c in categorical if rank(c) < len(GROUPS)]
    return min(ids, key=rank).name if ids else ""
