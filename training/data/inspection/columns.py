"""The columns of a sample, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from handlers.values import MAX_EXACT

Kind = Literal[
    "list", "constant", "boolean", "time", "integer id", "number", "text", "category", "other"
]
Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

ID_WORDS = {"id", "ids", "uid", "uuid", "guid", "code", "zip", "zipcode", "postcode", "sku", "key"}
# Names of users and items; those in front are preferred.
USERS = ("user", "uid", "member", "customer", "visitor", "viewer", "device", "session")
ITEMS = (
    *("item", "iid", "sku", "product", "goods", "video", "movie", "song", "track", "book"),
    *("news", "article", "ad", "creative"),
)
ENTITIES = {
    *(*USERS, *ITEMS, "author", "shop", "store", "brand", "category", "cate", "campaign"),
    *("query", "doc"),
}


@dataclass(frozen=True, eq=False)
class Column:
    """A column of the sample.

    Attributes:
        name: Name in the data.
        kind: What it holds.
        distinct: Number of distinct values; of lists, of their elements.
        codes: The number of each row's value, -1 where it is missing, int64 [rows].
        first: The first present value as a request spells it, None if there is none.
        numbers: The number, or the time in seconds, of each row, NaN where it is missing, float64
            [rows]; None if the column holds neither.
        separator: What joins the values of lists that are text.
        inexact: How many cells are floats of 2^53 or more, which cannot hold every digit of an id.
        exceptions: Texts that keep a column from being numbers, if they are few.
        pair: The two values of a column of two texts, in the order of their codes.
        is_prose: Whether most of its distinct values are texts of several words.
        time_zone: Name of the time zone in which times are stored, if the data says so.
    """

    name: str
    kind: Kind
    distinct: int
    codes: Codes
    first: Any
    numbers: Values | None = None
    separator: str = ""
    inexact: int = 0
    exceptions: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()
    is_prose: bool = False
    time_zone: str = ""

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether each row has a value, [rows]."""
        return self.codes >= 0

    @property
    def missing(self) -> float:
        """Share of the rows without a value."""
        return 1 - float(self.present.mean())

    @property
    def is_unique(self) -> bool:
        """Whether no value repeats."""
        return self.distinct == int(self.present.sum())

    @property
    def repeats(self) -> bool:
        """Whether a value has two rows or more on average."""
        return 2 * self.distinct <= int(self.present.sum())

    @property
    def is_category(self) -> bool:
        """Whether a model takes it as a category, not as a number."""
        # 0 and 1 may be a number, but a request cannot send true for one.
        is_spelled = self.kind == "boolean" and type(self.first) is not int
        return self.kind in ("category", "integer id") or is_spelled

    @property
    def is_text(self) -> bool:
        """Whether it holds text that is not a number, such as a title."""
        return self.kind in ("text", "category") and self.numbers is None

    @property
    def fits_float(self) -> bool:
        """Whether a client that sends float64 numbers only can send every value."""
        values = self.numbers
        return values is not None and bool(np.nanmax(np.abs(values)) <= MAX_EXACT)

    def n_pairs(self, other: Column) -> int:
        """Count the distinct pairs with the values of another column, in rows that have both."""
        known = self.present & other.present
        return len(np.unique(other.codes[known] * (self.codes.max() + 1) + self.codes[known]))

    def depends_on(self, other: Column) -> bool:
        """Return whether rows with the same value in another column have the same here."""
        known = self.present & other.present
        return self.n_pairs(other) == len(np.unique(other.codes[known]))


@dataclass(frozen=True)
class Inspection:
    """The columns of a data set.

    Attributes:
        columns: The columns, in the order of the data.
        rows: Number of rows that were read.
        is_all: Whether these are all rows of the data.
        is_split: Whether the data comes as train, valid and test split.
    """

    columns: Sequence[Column]
    rows: int
    is_all: bool
    is_split: bool


def names(columns: Iterable[Column]) -> str:
    """Join the names of columns as flags expect them."""
    return ",".join(column.name for column in columns)


def words(name: str) -> list[str]:
    """Split a name into lower-case words: ``eventTime`` and ``event_time`` have two."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+", name)
    return [word.lower() for word in found]


def names_id(name: str) -> bool:
    """Return whether a name is that of an id, such as item_id, userid, zip or brand."""
    last = (words(name) or [""])[-1]
    return last in ID_WORDS | ENTITIES or _without_id(last) in ENTITIES


def find_id(columns: Sequence[Column], of: Sequence[str]) -> Column | None:
    """Find the ids of users or items.

    Args:
        columns: Columns to choose from.
        of: What the ids may be of, preferred words first, such as ``USERS``.
    """

    def rank(column: Column) -> int:
        found = {*words(column.name), *map(_without_id, words(column.name))}
        return min((of.index(word) for word in found if word in of), default=len(of))

    ids = [c for c in columns if c.is_category and names_id(c.name) and rank(c) < len(of)]
    return min(ids, key=rank, default=None)


def has_word(column: Column, wanted: Collection[str]) -> bool:
    """Return whether a name has one of the words."""
    return not set(wanted).isdisjoint(words(column.name))


def _without_id(word: str) -> str:
    return re.sub("(?<=.)ids?$", "", word)
