"""Find columns that are known only after the label, and numbers that are codes.

Shapes: B rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.inspection.columns import Column, Values, has_word
from training.metrics.ranking import auc

Labels = npt.NDArray[np.bool_]

OUTCOME_WORDS = {
    *("label", "click", "clicked", "clicks", "target", "y", "converted", "conversion"),
    *("purchased", "purchase", "bought", "buy", "like", "liked"),
}
AMOUNT_WORDS = {"watch", "watched", "dwell", "gmv"}
MAX_AUC = 0.99
MAX_CODES = 30

# Fewer rows of a label prove nothing.
_MIN_LABELS = 20
# Largest probability of a finding that is called no chance.
_MAX_CHANCE = 1e-6
# Rates must rank better than order by this AUC and by so many standard errors.
_MIN_GAIN, _MIN_ERRORS = 0.01, 2


class Leak(NamedTuple):
    """Why a column must not be a feature.

    Attributes:
        reason: The reason.
        is_outcome: Whether it is an outcome of its own, such as the time watched.
    """

    reason: str
    is_outcome: bool


def find_leak(column: Column, labels: Labels) -> Leak | None:
    """Find out whether a column is known only after the label.

    - An outcome is 0 or empty in every row whose label is 0, which is no chance; or a boolean whose
      name has one of ``OUTCOME_WORDS``, or a number with one of ``AMOUNT_WORDS``.
    - A column that alone ranks the label with an AUC above ``MAX_AUC`` says the same as the label.

    Args:
        column: The column.
        labels: Whether the label is 1, [B].
    """
    outcomes = {"boolean": OUTCOME_WORDS, "number": AMOUNT_WORDS}.get(column.kind, set())
    if has_word(column, outcomes):
        return Leak("by its name, known only after the label", is_outcome=True)
    active, values = column.present, column.numbers
    if values is not None and column.kind != "time":
        active = active & (values != 0)
    chance = float(labels.mean()) ** int(active.sum())
    if not active[~labels].any() and chance < _MAX_CHANCE:
        if active[labels].all():
            return Leak("says the same as the label", is_outcome=False)
        reason = "0 or empty in every row whose label is 0: known only after it"
        return Leak(reason, is_outcome=True)
    if column.kind == "list":
        return None
    if values is not None and column.kind in ("number", "time", "boolean"):
        known = ~np.isnan(values)
        found = _auc(labels[known], values[known])
    else:
        found = _rate_auc(column, labels)[0]
    found = max(found, 1 - found)
    if found <= MAX_AUC:
        return None
    reason = f"says what the label says: alone, it ranks with an AUC of {found:.3f}"
    return Leak(reason, is_outcome=False)


def ranks_by_rate(column: Column, labels: Labels) -> bool:
    """Return whether numbers are codes: the rate of each value ranks better than their order."""
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


def _auc(labels: Labels, scores: Values) -> float:
    """Compute the AUC, 0.5 if there are too few labels of a kind."""
    n = int(labels.sum())
    return auc(labels, scores) if min(n, len(labels) - n) >= _MIN_LABELS else 0.5


def _rate_auc(column: Column, labels: Labels) -> tuple[float, float]:
    """Compute the AUC of each value's rate and, of numbers, that of their order, on one half."""
    fitted = np.random.default_rng(0).random(len(labels)) < 0.5
    tested = ~fitted
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
