"""Baselines and ranks of the next item agree with what is computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.training.tasks.next_item.test_split import LOG
from training.metrics.retrieval import retrieval_report
from training.tasks.next_item.baselines import item_knn, last_item, popularity
from training.tasks.next_item.evaluation import NextItemEvaluation
from training.tasks.next_item.split import HeldOut, leave_one_out


def test_baselines_agree_with_scores_by_hand() -> None:
    split = leave_one_out(LOG["user"], LOG["item"], min_count=1)
    x, y, z = (split.vocabulary.index(token) for token in "xyz")
    held_out = HeldOut(np.array([0]), [np.array([y + 2, x + 2])], np.array([z + 2]))
    counts = popularity(split.train, 3)(held_out)[0]
    assert [counts[x], counts[y], counts[z]] == [4, 2, 1]
    after_x = last_item(split.train, 3)(held_out)[0]
    assert [after_x[x], after_x[y], after_x[z]] == [0, 2, 0]
    # The users of x are a, b, c; those of y are a, b; that of z is a.
    near = item_knn(split.train, 3)(held_out)[0]
    assert near[z] == pytest.approx(1 / np.sqrt(2) + 1 / np.sqrt(3))
    assert near[x] == pytest.approx(2 / np.sqrt(6))


class RanksOnly(NextItemEvaluation):
    """An evaluation that sends no requests."""

    def rows(self) -> list[Any]:
        """Return no rows."""
        return []


def test_item_out_of_vocabulary_is_a_miss() -> None:
    split = leave_one_out(LOG["user"], LOG["item"], min_count=1)
    ranks = RanksOnly(split, exclude_history=False).rank(
        lambda held_out: np.zeros((len(held_out), 3))
    )
    all_equal = retrieval_report(ranks)
    assert all_equal["hr_at_10"] == 0.75  # the held-out q of user c cannot be found
    assert all_equal["mrr"] == pytest.approx(0.75 / 2)
