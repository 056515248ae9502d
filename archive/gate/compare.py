"""Compare two versions of a model on the same test split: metrics, confidence and slices.

Shapes: R results, in U units that the bootstrap draws as a whole.
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

# Enough draws for a standard error (Efron and Tibshirani, 1993).
DRAWS = 100
NORMAL_95 = 1.96
# Most units in a draw. Fewer units than there are widen the interval by a known factor.
MAX_UNITS = 5_000
# A slice with fewer results is too noisy to report.
MIN_SLICE = 100
# A column with more values is divided into ranges, or its rarer values are put together.
MAX_VALUES = 8
DEFAULT_SLICES = ("user_gender", "user_age")
AGE_BANDS = (18, 25, 35, 45, 55, 65)


@dataclass(frozen=True)
class Scored:
    """The results of a version, or of a baseline in its place.

    Attributes:
        name: The version, or the name of the baseline.
        results: Results on the test split, [R, ...].
        importance: Loss of the primary metric when a feature is shuffled, by feature.
    """

    name: str
    results: Results
    importance: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """A metric of two versions.

    Attributes:
        metric: Name of the metric.
        old: Value of the current version.
        new: Value of the version that is judged.
        margin: Half of the 95 % interval of the difference.
    """

    metric: str
    old: float
    new: float
    margin: float

    @property
    def difference(self) -> float:
        """How much higher the new version is."""
        return self.new - self.old


@dataclass(frozen=True)
class Limit:
    """A bound on a metric of the new version.

    Attributes:
        value: The bound.
        ratio: The bound as a share of the current version's metric.
        is_least: Whether it is a lower bound instead of an upper bound.
    """

    value: float
    ratio: float
    is_least: bool

    def holds(self, value: float) -> bool:
        """Return whether a value keeps to the bound."""
        return value >= self.value if self.is_least else value <= self.value

    def __str__(self) -> str:
        """Return the condition, such as ``>= 0.7418``."""
        return f"{'>=' if self.is_least else '<='} {self.value:.4f}"


@dataclass(frozen=True)
class Slice:
    """The results that share a value of a column.

    Attributes:
        column: Name of the column.
        value: The value, or a range of values.
        n_results: Number of results.
        change: Change of the primary metric.
        calibration: Predicted over actual clicks of the old and the new version; None if the model
            does not predict clicks.
        is_worse: Whether even the upper end of the interval misses the limit of the primary metric.
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
        old: The current version, or a baseline.
        new: The version that is judged.
        changes: Change of each metric.
        limits: Limits by metric.
        slices: Slices by column and value.
    """

    old: Scored
    new: Scored
    changes: Sequence[Change]
    limits: Mapping[str, Limit]
    slices: Sequence[Slice]

    @property
    def failures(self) -> list[str]:
        """Reasons why the new version may not ship."""
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
        old: The current version, or a baseline.
        new: The version that is judged.
        min_ratio: Share of the current version's value that a metric must reach, by metric.
        max_ratio: Multiple of the current version's value that a metric must not exceed, by metric.
        columns: Columns to slice by; by default user_gender and user_age, where they exist.

    Raises:
        UserError: If there is no such metric or column.
    """
    changes = measure(evaluation, old, new)
    known = {change.metric: change.old for change in changes}
    limits = {}
    for ratios, is_least in ((min_ratio, True), (max_ratio, False)):
        for metric, ratio in ratios.items():
            if metric not in known:
                raise UserError(f"no metric {metric}; there are {', '.join(known)}")
            limits[metric] = Limit(known[metric] + _leeway(known[metric], ratio), ratio, is_least)
    ratio = min_ratio.get(evaluation.primary, 1.0)
    slices = list(_slices(evaluation, old, new, columns, ratio))
    return Comparison(old, new, changes, limits, slices)


def _leeway(value: float, ratio: float) -> float:
    """Return what to add to a value for a limit; 0.99 lowers the limit of negative values too."""
    return (ratio - 1) * abs(value)


def measure(
    evaluation: Evaluation, old: Scored, new: Scored, rows: Indices | None = None
) -> list[Change]:
    """Measure both versions, and estimate the error of each difference by a paired bootstrap.

    Args:
        evaluation: The test split.
        old: The current version, or a baseline.
        new: The version that is judged.
        rows: Positions of the results that count; all by default.
    """
    rows = np.arange(len(evaluation.frame)) if rows is None else rows
    before, after = (evaluation.report(scored.results, rows) for scored in (old, new))
    metrics = [metric for metric in after if metric in before]
    units = _Units(rows if evaluation.groups is None else evaluation.groups[rows])
    n_drawn = min(len(units), MAX_UNITS)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        sample = rows[units.results(rng.integers(len(units), size=n_drawn))]
        a, b = (evaluation.report(scored.results, sample) for scored in (old, new))
        drawn.append([b.get(metric, np.nan) - a.get(metric, np.nan) for metric in metrics])
    errors = np.std(drawn, axis=0, ddof=1) * np.sqrt(n_drawn / len(units))
    return [
        Change(metric, before[metric], after[metric], NORMAL_95 * float(error))
        for metric, error in zip(metrics, errors, strict=True)
    ]


class _Units:
    """Groups of results that the bootstrap draws as a whole, such as those of one user.

    Args:
        keys: The unit of each result, [R].
    """

    def __init__(self, keys: npt.NDArray[Any]) -> None:
        _, codes = np.unique(keys, return_inverse=True)
        self._order = np.argsort(codes, kind="stable")
        self._sizes = np.bincount(codes)
        self._starts = self._sizes.cumsum() - self._sizes

    def __len__(self) -> int:
        """Return the number of units, U."""
        return len(self._sizes)

    def results(self, units: Indices) -> Indices:
        """Return the positions of the results of some units, one unit after the other."""
        sizes = self._sizes[units]
        within_unit = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        positions: Indices = self._order[np.repeat(self._starts[units], sizes) + within_unit]
        return positions


def _slices(
    evaluation: Evaluation, old: Scored, new: Scored, columns: Sequence[str], ratio: float
) -> Iterator[Slice]:
    frame = evaluation.frame
    if missing := [column for column in columns if column not in frame]:
        raise UserError(
            f"--slice {' '.join(missing)}: no such column; "
            f"there are {', '.join(map(str, frame)) or 'none for this model'}"
        )
    for column in columns or [name for name in DEFAULT_SLICES if name in frame]:
        for value, mask in _masks(frame[column]):
            rows = np.flatnonzero(mask)
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


def _masks(values: pd.Series[Any]) -> Iterator[tuple[str, pd.Series[bool]]]:
    """Yield the name and the mask of each slice of a column.

    Numbers with many values are divided into ranges: ages into bands, others into quarters.
    """
    is_numeric = pd.api.types.is_numeric_dtype(values)
    if is_numeric and values.nunique() > MAX_VALUES:
        quarters = values.quantile([0.25, 0.5, 0.75]).unique().tolist()
        edges = AGE_BANDS if values.name == "user_age" else quarters
        for left, right in pairwise([-np.inf, *edges, np.inf]):
            yield _band(left, right), (values >= left) & (values < right)
    else:
        common = values.value_counts().index[:MAX_VALUES]
        for value in common:
            yield f"{value:g}" if is_numeric else value, values == value
        yield "others", values.notna() & ~values.isin(common)
    yield "missing", values.isna()


def _band(left: float, right: float) -> str:
    if left == -np.inf:
        return f"below {right:g}"
    return f"{left:g} or more" if right == np.inf else f"{left:g} to {right:g}"
