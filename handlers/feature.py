"""One input of a model: its name, what its values are, and what training learned about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from handlers.values import Id, Token, fits_float

MISSING_INDEX = 0
OOV_INDEX = 1
FIRST_TOKEN_INDEX = 2

# Cardinality of a matrix column, 0 for a number; or of the columns of a list: (cardinality, length)
# or, if it embeds its tokens as another feature does, (cardinality, length, matrix column of that).
Cardinality = int | tuple[int, ...]

NUMBERS, LISTS, TIMES = ("number", "age"), ("multi", "history"), ("time", "age")


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of a model.

    Attributes:
        name: Key in a request's row and column in the training data.
        kind: What the values are.

            - ``number``
            - ``category``: an id or a string.
            - ``multi``: a list of these, in no order.
            - ``history``: a list of values of another category, the latest last.
            - ``time``: the time of the event, from which the model takes the hour of the day and
              the weekday.
            - ``age``: a time from which the model takes the days that have passed until the event.
        default: Replaces a missing number. None if training saw missing cells: NaN then reaches
            the model, which has learned how to treat it.
        train_range: Smallest and largest number of the training split.
        product_of: Makes this a cross feature: the two numbers whose product replaces a missing
            value.
        vocabulary: Known tokens of a category; token i has index i + 2, after 0 for missing and
            1 for out of vocabulary.
        hash_buckets: If positive, the category is too large for a vocabulary and takes two matrix
            columns, each a stable hash of the token modulo this number.
        hash_ids: Whether a token that is no number stands for an integer, its hash
            (:func:`handlers.values.hashed_id`), so that callers can send either.
        max_length: Longest list that the model reads: the start of a multi, the end of a history.
        separator: Splits a list that is sent as text; empty if a text is a single token.
        items: The category whose values a history lists; it also has the vocabulary.
        time_zone: IANA name of the time zone of hours, weekdays and times without an offset.
        event: The ``time`` until which an age is counted.
    """

    name: str
    kind: Literal["number", "category", "multi", "history", "time", "age"] = "number"
    default: float | None = 0.0
    train_range: tuple[float, float] | None = None
    product_of: tuple[str, str] | None = None
    vocabulary: tuple[str, ...] = ()
    hash_buckets: int = 0
    hash_ids: bool = False
    max_length: int = 0
    separator: str = ""
    items: str = ""
    time_zone: str = "UTC"
    event: str = ""

    @property
    def is_number(self) -> bool:
        """Whether the matrix holds a number, not indices."""
        return self.kind in NUMBERS

    @property
    def sent_as(self) -> str:
        """What clients send: number, text or list; a time may be either number or text."""
        if self.kind in LISTS:
            return "list"
        if self.hash_ids or all(map(fits_float, self.vocabulary)):
            return "number"
        return "text"

    @property
    def cardinality(self) -> int:
        """Number of indices of a token, including the two reserved ones; 0 for others."""
        if self.kind in ("category", "multi"):
            return FIRST_TOKEN_INDEX + (self.hash_buckets or len(self.vocabulary))
        return 0


def value_type(feature: Feature) -> Any:
    """Return the type of a feature's value in a request."""
    if feature.kind == "number":
        return float | None
    if feature.kind in TIMES:
        return Id | None
    if feature.kind in LISTS:
        return list[Token | None] | Token | None
    return Token | None
