"""Two versions of a model on the same test split: what changed, how surely, and for whom.

Shapes: R results, U units of them that are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from handlers.errors import UserError
from training.evaluation import Evaluation, Results
from training.metrics.retrieval import Indices

# Enough for a standard error (Efron and Tibshirani, 1993).
DRAWS = 100
NORMAL_95 = 1.96
# Units of a draw at most: an interval from fewer is wider by a known factor.
MAX_UNITS = 5_000
# A slice with fewer results says nothing.
MIN_SLICE = 100
MAX_TOKENS = 8
DEFAULT_SLICES = ("user_gender", "user_age")
AGE_BANDS = (18, 25, 35, 45, 55, 65)


class GateError(UserError):
    """There is no verdict; the message says why and what to do."""


@dataclass(frozen=True)
class Scored:
    """What one version, or a baseline in its place, was worth.

    Attributes:
        name: Its version.
        results: On the test split, [R, ...].
        importance: How much of the primary metric is lost without a feature, by its name.
    """

    name: str
    results: Results
    importance: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """A metric of two versions.

    Attributes:
        metric: Its name.
        old: Of the current version.
        new: Of the one that is judged.
        margin: Half of the 95 % interval of the difference.
    """

    metric: str
    old: float
    new: float
    margin: float

    @property
    def difference(self) -> float:
        """Above 0 where the new version has more."""
        return self.new - self.old


@dataclass(frozen=True)
class Limit:
    """What a metric of the new version may not cross.

    Attributes:
        value: The limit.
        ratio: That of the current version's it is.
        is_least: Whether the metric may not be below, instead of above.
    """

    value: float
    ratio: float
    is_least: bool

    def holds(self, value: float) -> bool:
        """Whether a value is on the right side."""
        return value >= self.value if self.is_least else value <= self.value

    def __str__(self) -> str:
        """As a condition."""
        return f"{'>=' if self.is_least else '<='} {self.value:.4f}"


@dataclass(frozen=True)
class Slice:
    """The primary metric among some of the results.

    Attributes:
        column: What they have in common a value of.
        value: That value, or a range.
        n_results: How many they are.
        change: Of the primary metric.
        calibration: Predicted over actual clicks, of the old version and of the new; None for a
            model that predicts none.
        is_worse: Whether here the new version surely misses what it must reach over all.
    """

    column: str
    value: str
    n_results: int
    change: Change
    calibration: tuple[float, float] | None
    is_worse: bool


@dataclass(frozen=True)
class Comparison:
    """The verdict and what led to it.

    Attributes:
        old: The current version.
        new: The one that is judged.
        changes: Of each metric.
        limits: By metric.
        slices: By column and value.
    """

    old: Scored
    new: Scored
    changes: Sequence[Change]
    limits: Mapping[str, Limit]
    slices: Sequence[Slice]

    @property
    def failures(self) -> list[str]:
        """Why the new version may not ship."""
        return [
            f"{c.metric}: expected {limit} ({limit.ratio:g} x {c.old:.4f}), got {c.new:.4f}"
            for c in self.changes
            if (limit := self.limits.get(c.metric)) and not limit.holds(c.new)
        ]


def compare(
    evaluation: Evaluation,
    old: Scored,
    new: Scored,
    min_ratio: Mapping[str, float],
    max_ratio: Mapping[str, float],
    columns: Sequence[str],
) -> Comparison:
    """Compare two versions.

    Args:
        evaluation: The test split.
        old: The current version.
        new: The one that is judged.
        min_ratio: Metrics that must reach a share of the current version's.
        max_ratio: Metrics that must stay below a multiple of it.
        columns: To slice by; by default user_gender and user_age, where there are such.

    Raises:
        GateError: If there is no such metric or column.
    """
    changes = measure(evaluation, old, new)
    known = {change.metric: change.old for change in changes}
    limits = {}
    for ratios, is_least in ((min_ratio, True), (max_ratio, False)):
        for metric, ratio in ratios.items():
            if metric not in known:
                raise GateError(f"no metric {metric}; there are {', '.join(known)}")
            limits[metric] = Limit(known[metric] + _leeway(known[metric], ratio), ratio, is_least)
    ratio = min_ratio.get(evaluation.primary, 1.0)
    slices = list(_slices(evaluation, old, new, columns, ratio))
    return Comparison(old, new, changes, limits, slices)


def _leeway(value: float, ratio: float) -> float:
    """What may be added to a value; .99 gives way downwards for a negative one, too."""
    return (ratio - 1) * abs(value)


def measure(
    evaluation: Evaluation, old: Scored, new: Scored, rows: Indices | None = None
) -> list[Change]:
    """Each metric of two versions, with a paired bootstrap of the difference.

    Args:
        evaluation: The test split.
        old: One version.
        new: The other.
        rows: The results that count; all by default.
    """
    rows = np.arange(len(evaluation.frame)) if rows is None else rows
    before, after = (evaluation.report(scored.results, rows) for scored in (old, new))
    metrics = [metric for metric in after if metric in before]
    units = _Units(rows if evaluation.groups is None else evaluation.groups[rows])
    n_drawn = min(len(units), MAX_UNITS)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        some = rows[units.pick(rng.integers(len(units), size=n_drawn))]
        a, b = (evaluation.report(scored.results, some) for scored in (old, new))
        drawn.append([b.get(metric, np.nan) - a.get(metric, np.nan) for metric in metrics])
    errors = np.std(drawn, axis=0, ddof=1) * np.sqrt(n_drawn / len(units))
    return [
        Change(metric, before[metric], after[metric], NORMAL_95 * float(error))
        for metric, error in zip(metrics, errors, strict=True)
    ]


class _Units:
    """Results that are drawn together."""

    def __init__(self, keys: npt.NDArray[Any]) -> None:
        _, codes = np.unique(keys, return_inverse=True)
        self._order = np.argsort(codes, kind="stable")
        self._sizes = np.bincount(codes)
        self._starts = self._sizes.cumsum() - self._sizes

    def __len__(self) -> int:
        """U."""
        return len(self._sizes)

    def pick(self, units: Indices) -> Indices:
        """The results of some units, one unit after the other."""
        sizes = self._sizes[units]
        places = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        picked: Indices = self._order[np.repeat(self._starts[units], sizes) + places]
        return picked


def _slices(
    evaluation: Evaluation, old: Scored, new: Scored, columns: Sequence[str], ratio: float
) -> Iterator[Slice]:
    frame = evaluation.frame
    if missing := [column for column in columns if column not in frame]:
        raise GateError(
            f"--slice {' '.join(missing)}: no such column; "
            f"there are {', '.join(map(str, frame)) or 'none for this model'}"
        )
    for column in columns or [name for name in DEFAULT_SLICES if name in frame]:
        for value, is_part in _parts(frame[column]):
            rows = np.flatnonzero(is_part)
            if len(rows) < MIN_SLICE or not evaluation.report(new.results, rows):
                continue
            by_metric = {c.metric: c for c in measure(evaluation, old, new, rows)}
            primary = by_metric[evaluation.primary]
            calibration = next(
                (c for name, c in by_metric.items() if name.endswith("calibration_ratio")), None
            )
            yield Slice(
                column,
                value,
                len(rows),
                primary,
                (calibration.old, calibration.new) if calibration else None,
                is_worse=primary.difference + primary.margin < _leeway(primary.old, ratio),
            )


def _parts(values: pd.Series[Any]) -> Iterator[tuple[str, pd.Series[bool]]]:
    """Names and masks: of the most frequent values; ages in bands, other numbers in quarters."""
    is_numeric = pd.api.types.is_numeric_dtype(values)
    if is_numeric and values.nunique() > MAX_TOKENS:
        quarters = values.quantile([0.25, 0.5, 0.75]).unique().tolist()
        edges = AGE_BANDS if values.name == "user_age" else quarters
        for left, right in pairwise([-np.inf, *edges, np.inf]):
            yield _band(left, right), (values >= left) & (values < right)
    else:
        common = values.value_counts().index[:MAX_TOKENS]
        for value in common:
            yield f"{value:g}" if is_numeric else value, values == value
        yield "others", values.notna() & ~values.isin(common)
    yield "missing", values.isna()


def _band(left: float, right: float) -> str:
    if left == -np.inf:
        return f"below {right:g}"
    return f"{left:g} or more" if right == np.inf else f"{left:g} to {right:g}"
