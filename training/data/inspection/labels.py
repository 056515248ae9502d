"""Choose the column to predict, and how to make a label of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.inspection.columns import Column, Values, has_word, words
from training.data.inspection.leaks import Labels

LABEL_WORDS = (
    *("label", "click", "clicked", "clicks", "target", "y", "converted", "conversion"),
    *("purchased", "purchase", "bought", "buy", "like", "liked"),
    *("response", "income", "wage", "churn", "outcome", "class"),
)
RATING_WORDS = {"rating", "ratings", "stars"}
POSITIVE_WORDS = {"yes", "y", "t", "positive", "pos", "good", "click", "clicked", "+"}
# Name of a label that is yet to be written.
NEW_LABEL = "label"
# A rating with more values than this is an amount.
_MAX_RATINGS = 20


@dataclass(frozen=True)
class Label:
    """What to predict.

    Attributes:
        column: The column that says it.
        values: Whether each row's label is 1, [rows].
        equals: The text that stands for 1; None if the column does not hold two texts.
        at_least: The smallest number that stands for 1; None if the column is 0 and 1, or texts.
    """

    column: Column
    values: Labels
    equals: str | None = None
    at_least: float | None = None

    @property
    def is_new(self) -> bool:
        """Whether the label has to be written as a column of its own."""
        return self.equals is not None or self.at_least is not None

    @property
    def name(self) -> str:
        """Name of the column of the label."""
        return NEW_LABEL if self.is_new else self.column.name

    @property
    def condition(self) -> str:
        """Description of the rows whose label is 1."""
        if self.equals is not None:
            return f"{self.column.name} is {self.equals}"
        return f"{self.column.name} >= {self.at_least:g}"


def choose_label(
    columns: Sequence[Column], ids: Sequence[Column], notes: list[str]
) -> Label | None:
    """Choose the column to predict; None if there is no candidate.

    A column of 0 and 1, or true and false, whose name has one of ``LABEL_WORDS``, the earliest of
    them; without such a name, the first such column that does not describe a user or an item. If
    there is none, a column of two values with such a name, or else a rating.

    Args:
        columns: Columns to choose from.
        ids: The ids of users and items.
        notes: Gets what the user has to decide.
    """

    def rank(column: Column) -> int:
        found = [LABEL_WORDS.index(w) for w in words(column.name) if w in LABEL_WORDS]
        return min(found, default=len(LABEL_WORDS))

    def describes(column: Column) -> bool:
        return any(i.repeats and column.depends_on(i) for i in ids)

    booleans = [c for c in columns if c.kind == "boolean"]
    if booleans := [c for c in booleans if rank(c) < len(LABEL_WORDS) or not describes(c)]:
        label = min(booleans, key=rank)
        if rank(label) == len(LABEL_WORDS) and len(booleans) > 1:
            shown = ", ".join(c.name for c in booleans)
            notes.append(
                f"{shown} each hold 0 and 1, and no name says which is the label: change --label "
                f"if it is not {label.name}"
            )
        return Label(label, _numbers(label) == 1)
    if pairs := [c for c in columns if c.distinct == 2 and rank(c) < len(LABEL_WORDS)]:
        return _of_two(min(pairs, key=rank))
    ratings = [c for c in columns if c.kind == "number" and has_word(c, RATING_WORDS)]
    return _of_rating(ratings[0]) if ratings else None


def _of_two(column: Column) -> Label:
    if column.numbers is not None:
        high = float(np.nanmax(column.numbers))
        return Label(column, _numbers(column) == high, at_least=high)
    named = [i for i, text in enumerate(column.pair) if text.lower() in POSITIVE_WORDS]
    # What is to be predicted is mostly the rarer one.
    positive = (
        named[0] if len(named) == 1 else int((column.codes == 1).sum() * 2 < len(column.codes))
    )
    return Label(column, column.codes == positive, equals=column.pair[positive])


def _of_rating(column: Column) -> Label:
    known = _numbers(column)[column.present]
    steps = np.unique(known)
    if len(steps) > _MAX_RATINGS:
        steps = np.array([np.median(known)])
    shares = np.array([(known >= step).mean() for step in steps])
    threshold = float(steps[np.abs(shares - 0.5).argmin()])
    return Label(column, _numbers(column) >= threshold, at_least=threshold)


def _numbers(column: Column) -> Values:
    return np.full(len(column.codes), np.nan) if column.numbers is None else column.numbers
