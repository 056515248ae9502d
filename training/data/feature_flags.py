"""The flags that say what the values of the feature columns are, if not numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from handlers.feature import LISTS, TIMES, Feature
from handlers.times import time_zone
from training.data.cells import ListReader, Reader, TimeReader, to_tokens
from training.data.sources import DataError

# A matrix is of float32, which holds every index up to 2^24.
MAX_BUCKETS = (1 << 24) - 2
_SEPARATORS = {"": ",", "comma": ",", "tab": "\t", r"\t": "\t", "space": " "}


def split_names(text: str) -> list[str]:
    """Split the value of a flag, such as ``a,b,c``."""
    return [name.strip() for name in text.split(",") if name.strip()]


def named_columns(flag: str, text: str) -> dict[str, str]:
    """Return the parts of a flag that lists columns, by column: ``tags`` for ``tags:|``.

    Args:
        flag: Name of the flag, such as ``multi``.
        text: Its value.
    """
    parts = split_names(text)
    if flag in ("multi", "history"):
        return {parse_separator(part)[0]: part for part in parts}
    return {part.rpartition(":")[0] if flag == "hash" else part: part for part in parts}


@dataclass(frozen=True)
class FeatureFlags:
    """Which features are categories.

    Attributes:
        categorical: Input columns that hold ids or strings, separated by commas.
        multi: Input columns that hold several ids or strings in a cell, separated by commas. A
            column of lists by its name, such as tags; a column of text with the character between
            the values, such as "tags:|" or tags:comma.
        max_values: Most values of one cell of --multi; further ones are cut, and counted.
        hash: Categories without a vocabulary, whose values are hashed to this many indices, such as
            user_id:1000000.
        hash_ids: Let callers send integers for texts, by the hash that docs/data.md describes.
    """

    categorical: str = ""
    multi: str = ""
    max_values: Annotated[int, Field(ge=1, le=10_000)] = 50
    hash: str = ""
    hash_ids: bool = False

    @classmethod
    def kind_flags(cls) -> list[str]:
        """Return the names of the flags that say what kind of feature a column is."""
        return ["categorical", "multi"]

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the flags that list columns."""
        return [*cls.kind_flags(), "hash"]

    @classmethod
    def flags_of_kinds(cls) -> list[str]:
        """Return the flags that say what kind of values a column holds."""
        return [f"--{name}" for name in cls.names() if name != "hash"]

    def added_features(self) -> list[str]:
        """Return the columns that are features although no list of features need name them."""
        return list(self._separators)

    def drafts(self, features: Sequence[str], flag: str = "--features") -> list[Feature]:
        """Return features as the flags describe them, before anything is learned from data.

        Args:
            features: Names of the features.
            flag: Flags that name features, for messages.

        Raises:
            DataError: If a flag has no meaning.
        """
        if self.multi.endswith((": ", ":\t")) or ": ," in self.multi or ":\t," in self.multi:
            raise DataError("--multi: spell a tab or a space as in tags:tab or tags:space")
        self._check_kinds()
        self._expect("--categorical", split_names(self.categorical), features, flag)
        self._expect("--multi", self._separators, features, flag)
        categories = {*self._categories, *self._separators}
        self._expect("--hash", self._buckets, categories, "--categorical or --multi")
        return [self._draft(name) for name in features]

    def _check_kinds(self) -> None:
        """Raise an error if two flags name the same column."""
        flags: dict[str, str] = {}
        for flag in self.kind_flags():
            for name in named_columns(flag, getattr(self, flag)):
                if (other := flags.setdefault(name, flag)) != flag:
                    raise DataError(f"--{other} and --{flag}: {name}: expected in one of them")

    def _draft(self, name: str) -> Feature:
        buckets, hash_ids = self._buckets.get(name, 0), self.hash_ids
        if name in self._separators:
            return Feature(
                name,
                kind="multi",
                hash_buckets=buckets,
                hash_ids=hash_ids,
                max_length=self.max_values,
                separator=self._separators[name],
            )
        if name in self._categories:
            return Feature(name, kind="category", hash_buckets=buckets, hash_ids=hash_ids)
        return Feature(name)

    @property
    def _categories(self) -> list[str]:
        return split_names(self.categorical)

    @property
    def _separators(self) -> dict[str, str]:
        return dict(parse_separator(part) for part in split_names(self.multi))

    @property
    def _buckets(self) -> dict[str, int]:
        buckets = {}
        for part in split_names(self.hash):
            name, _, number = part.rpartition(":")
            if not name or not number.isdecimal() or not 1 < int(number) <= MAX_BUCKETS:
                raise DataError(
                    f"--hash {part}: expected a category and a number from 2 to {MAX_BUCKETS}, "
                    "such as user_id:1000000"
                )
            buckets[name] = int(number)
        return buckets

    @staticmethod
    def _expect(flag: str, names: Collection[str], known: Collection[str], where: str) -> None:
        if stray := [name for name in names if name not in known]:
            raise DataError(f"{flag} {','.join(stray)}: expected names of {where}")


@dataclass(frozen=True)
class EventFlags(FeatureFlags):
    """Which features are categories, and which are times.

    Attributes:
        timestamp: Input columns that hold times: numbers or ISO 8601. The first is the time of the
            event and gives its hour and weekday; each further one, such as published_at, gives the
            days from then to the event.
        timezone: Time zone of the hours and weekdays, and of times without an offset, such as
            Asia/Shanghai.
    """

    timestamp: str = ""
    timezone: str = "UTC"

    @classmethod
    def kind_flags(cls) -> list[str]:
        """Return the names of the flags that say what kind of feature a column is."""
        return [*super().kind_flags(), "timestamp"]

    def added_features(self) -> list[str]:
        """Return the columns of lists and of times."""
        return [*super().added_features(), *split_names(self.timestamp)]

    def drafts(self, features: Sequence[str], flag: str = "--features") -> list[Feature]:
        """Return features as the flags describe them; see :meth:`FeatureFlags.drafts`."""
        try:
            time_zone(self.timezone)
        except ValueError as error:
            raise DataError(f"--timezone: {error}") from None
        return super().drafts(features, flag)

    def _draft(self, name: str) -> Feature:
        times = split_names(self.timestamp)
        if name not in times:
            return super()._draft(name)
        if name == times[0]:
            return Feature(name, kind="time", time_zone=self.timezone)
        return Feature(name, kind="age", time_zone=self.timezone, event=times[0])


@dataclass(frozen=True)
class HistoryFlags(EventFlags):
    """Which features are categories and times, and which lists what came before the event.

    Attributes:
        history: Input column that lists the items of the user before the event, the latest last;
            with a separator as in --multi.
        history_of: Input column that holds the item itself; it is a category too.
        max_history: Most items of one cell of --history; older ones are cut, and counted.
    """

    history: str = ""
    history_of: str = "item_id"
    max_history: Annotated[int, Field(ge=1, le=10_000)] = 50

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the flags that list columns."""
        return [*super().names(), "history"]

    def added_features(self) -> list[str]:
        """Return the columns of lists, times and histories."""
        return [*super().added_features(), *self.histories]

    def drafts(self, features: Sequence[str], flag: str = "--features") -> list[Feature]:
        """Return features as the flags describe them; see :meth:`FeatureFlags.drafts`."""
        others = {*super().added_features(), *self._categories}
        if twice := [name for name in self.histories if name in others]:
            raise DataError(f"--history {','.join(twice)}: another flag says that it is no history")
        if self.histories:
            self._expect("--history-of", [self.history_of], features, flag)
        return super().drafts(features, flag)

    def _draft(self, name: str) -> Feature:
        if name not in self.histories:
            return super()._draft(name)
        return Feature(
            name,
            kind="history",
            max_length=self.max_history,
            separator=self.histories[name],
            items=self.history_of,
        )

    @property
    def histories(self) -> dict[str, str]:
        """Separators of the histories, by name."""
        return dict(parse_separator(part) for part in split_names(self.history))

    @property
    def _categories(self) -> list[str]:
        return [*super()._categories, *([self.history_of] if self.history else [])]


def parse_separator(text: str) -> tuple[str, str]:
    """Split ``tags:|`` into a column and a separator, which is empty for ``tags``."""
    name, colon, named = text.rpartition(":")
    if not colon:
        return text, ""
    separator = _SEPARATORS.get(named, named)
    if any(character.isalnum() for character in separator):
        raise DataError(f"{text}: expected a separator such as | or comma, got {separator}")
    return name, separator


def readers_of(features: Iterable[Feature]) -> dict[str, Reader]:
    """Return what reads the columns of features that are not numbers, by name."""
    readers: dict[str, Reader] = {}
    for feature in features:
        if feature.kind in LISTS:
            readers[feature.name] = ListReader(feature.separator)
        elif feature.kind in TIMES:
            readers[feature.name] = TimeReader(time_zone(feature.time_zone))
        elif feature.kind == "category":
            readers[feature.name] = to_tokens
    return readers
