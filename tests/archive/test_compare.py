"""The comparison of two versions: intervals, slices and limits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from archive.gate.compare import Comparison, Scored, compare
from handlers.errors import UserError
from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows


class Means(Evaluation):
    """An evaluation whose results are numbers and whose metric is their mean."""

    primary, chance, floor = "mean", 0.0, "none"

    def __init__(self, groups: Results | None, n: int) -> None:
        self.groups, self.frame = groups, pd.DataFrame({"half": np.arange(n) % 2})

    def rows(self) -> list[object]:
        """Not used."""
        return []

    def results(self, output: ArchiveOutput) -> Results:
        """Not used."""
        raise NotImplementedError

    def baselines(self) -> dict[str, Results]:
        """Not used."""
        return {}

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Return the mean."""
        return {"mean": float(results[rows].mean())}


def compared(groups: Results | None, old: Results, new: Results, **limits: float) -> Comparison:
    before, after = Scored("old", old, {}), Scored("new", new, {})
    return compare(Means(groups, len(old)), before, after, limits, {}, ["half"])


@pytest.mark.parametrize("n", [400, 20_000])
def test_interval_is_the_one_of_a_paired_difference(n: int) -> None:
    rng = np.random.default_rng(0)
    old = 100 * rng.normal(size=n)
    [change] = compared(None, old, old + 1 + rng.normal(size=n)).changes
    half = 1.96 / np.sqrt(n)
    assert change.difference == pytest.approx(1, abs=2 * half)
    assert change.margin == pytest.approx(half, rel=0.3)


def test_results_of_a_group_are_drawn_together() -> None:
    noise = np.repeat(np.random.default_rng(0).normal(size=100), 50)
    zeros, groups = np.zeros(5000), np.repeat(np.arange(100), 50)
    alone, together = (compared(g, zeros, noise).changes[0] for g in (None, groups))
    assert together.margin / alone.margin == pytest.approx(np.sqrt(50), rel=0.3)


def test_slice_that_gets_worse_is_marked_though_the_whole_passes() -> None:
    old = 1 + np.random.default_rng(0).normal(size=4000)
    comparison = compared(None, old, old + np.where(np.arange(4000) % 2, 1.0, -0.5), mean=0.99)
    assert comparison.failures == []
    assert {part.value: part.is_worse for part in comparison.slices} == {"0": True, "1": False}


def test_ratio_below_one_lowers_the_limit_of_a_negative_metric() -> None:
    numbers = np.full(200, -1.0)
    assert compared(None, numbers, numbers * 1.005, mean=0.99).failures == []
    assert len(compared(None, numbers, numbers * 1.02, mean=0.99).failures) == 1


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="no metric auc; there are mean"):
        compared(None, np.zeros(200), np.zeros(200), auc=0.99)
