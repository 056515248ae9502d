"""Encode the values of one feature as matrix columns of indices or numbers.

Shapes: B instances, W columns of the feature, T tokens of all instances together, H columns of one
token: 1 for an index in a vocabulary, 2 for the hashes of a hashed category.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from handlers.errors import RowError
from handlers.feature import FIRST_TOKEN_INDEX, MISSING_INDEX, OOV_INDEX, Feature
from handlers.values import MAX_EXACT, LostDigitsError, Token, hashed_id, row_token, to_token

RawMatrix = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class TokenLists(NamedTuple):
    """Lists of tokens, each distinct list or token only once.

    Attributes:
        tokens: Distinct tokens.
        flat: Positions in ``tokens`` of the lists' tokens, one list after the other, int64 [T].
        lengths: Length of each list, int64 [lists].
        list_of: List of each instance, int64 [B].
    """

    tokens: Sequence[Token | None]
    flat: Integers
    lengths: Integers
    list_of: Integers


class _Indices(dict[Token | None, int]):
    """Indices of tokens; those in another spelling than the vocabulary's are looked up in it."""

    def __init__(self, hash_ids: bool) -> None:
        super().__init__({None: MISSING_INDEX})
        self._hash_ids = hash_ids

    def __missing__(self, value: Token | None) -> int:
        token = to_token(value)
        if token is not None and self._hash_ids:
            token = hashed_id(token)
        return self.get(token, OOV_INDEX)


class TokenEncoder:
    """Maps tokens in any spelling to indices.

    Args:
        category: The vocabulary; token i has index i + 2, after 0 for missing and 1 for unknown.
            With ``hash_buckets``, a token has two indices instead: stable hashes of it, modulo
            this number. With ``hash_ids``, a token stands for the integer that it hashes to.
    """

    def __init__(self, category: Feature) -> None:
        self._name, self._buckets = category.name, category.hash_buckets
        self._hash_ids = category.hash_ids
        self._index = _Indices(category.hash_ids)
        for i, token in enumerate(category.vocabulary, start=FIRST_TOKEN_INDEX):
            self._index[token] = i
            # With the number as a key too, a JSON number needs no conversion to text at serving
            # time. As dictionary keys, 196 and 196.0 are the same.
            for parse in (int, float):
                try:
                    number = parse(token)
                    # A larger float may not be the id that it is equal to; `to_token` refuses it.
                    if abs(number) <= MAX_EXACT and to_token(number) == token:
                        self._index[number] = i
                except ValueError:
                    continue

    @property
    def columns_per_token(self) -> int:
        """H."""
        return 2 if self._buckets else 1

    def encode(self, tokens: Collection[Token | None]) -> RawMatrix:
        """Return the indices of a category, float64 [B, H]; every index fits a float64 exactly.

        Raises:
            RowError: If a token is a float of 2^53 or more.
        """
        try:
            return self._encode(tokens)
        except LostDigitsError:
            for row, token in enumerate(tokens):
                row_token(token, row, self._name)  # raises for the token
            raise

    def encode_lists(self, lists: TokenLists) -> RawMatrix:
        """Return the indices of all tokens of lists, float64 [T, H].

        Raises:
            RowError: If a token is a float of 2^53 or more.
        """
        try:
            return self._encode(lists.tokens)[lists.flat]
        except LostDigitsError:
            ends = lists.lengths.cumsum().tolist()
            for position, token in enumerate(lists.flat.tolist()):
                try:
                    row_token(lists.tokens[token], position, self._name)
                except RowError as error:
                    at = error.in_lists(ends)
                    row = int((lists.list_of == at.row).argmax())
                    raise RowError(row, self._name, at.problem) from None
            raise

    def _encode(self, tokens: Collection[Token | None]) -> RawMatrix:
        if self._buckets:
            hashed = [self._hash(token) for token in tokens]
            return np.array(hashed, dtype=np.float64).reshape(-1, 2)
        index = self._index
        return np.array([index[token] for token in tokens], dtype=np.float64)[:, None]

    def _hash(self, value: Token | None) -> tuple[int, int]:
        token = to_token(value)
        if token is None:
            return MISSING_INDEX, MISSING_INDEX
        if self._hash_ids:
            token = hashed_id(token)
        hashes = blake2b(token.encode("utf-8", "replace"), digest_size=16).digest()
        return (
            FIRST_TOKEN_INDEX + int.from_bytes(hashes[:8], "big") % self._buckets,
            FIRST_TOKEN_INDEX + int.from_bytes(hashes[8:], "big") % self._buckets,
        )


def to_lists(values: Collection[Any], separator: str) -> TokenLists:
    """Collect the lists of requests.

    Args:
        values: A list for each instance; a text is split at the separator, in a list too, another
            single value is a list of one, and None is empty.
        separator: Empty if a text is a single token.
    """
    lists: list[Sequence[Token | None]] = []
    list_of = []
    previous: Any = values  # is no value
    all_small: bool | None = None
    for value in values:
        # The rows of a request often share a list. Comparing it takes a tenth of encoding it.
        is_equal = isinstance(value, list) and value == previous
        if is_equal and all_small is None:
            all_small = not any(isinstance(x, int) and abs(x) > MAX_EXACT for x in previous)
        # A large float is equal to an integer, but is no id.
        if not is_equal or not (all_small or float not in map(type, value)):
            lists.append(_split(value, separator))
            previous, all_small = value, None
        list_of.append(len(lists) - 1)
    tokens = [token for tokens in lists for token in tokens]
    return TokenLists(
        tokens,
        np.arange(len(tokens)),
        np.fromiter(map(len, lists), dtype=np.int64, count=len(lists)),
        np.array(list_of, dtype=np.int64),
    )


def _split(value: Any, separator: str) -> Sequence[Token | None]:
    if value is None:
        return ()
    values: list[Token | None] = value if isinstance(value, list) else [value]
    if not separator:
        return values
    parts = (token.split(separator) if isinstance(token, str) else [token] for token in values)
    return list(chain.from_iterable(parts))


class ListEncoder:
    """Encodes lists of tokens, padded with 0 to the same length.

    Args:
        tokens: Encoder of a token.
        max_length: Longest list.
        separator: Splits texts; empty if a text is a single token.
        keeps_last: Whether the end of a longer list is kept, not its beginning.
    """

    def __init__(
        self, tokens: TokenEncoder, max_length: int, separator: str, keeps_last: bool
    ) -> None:
        self._tokens, self._max_length = tokens, max_length
        self._separator, self._keeps_last = separator, keeps_last

    def encode(
        self, values: Collection[Any] | TokenLists
    ) -> tuple[RawMatrix, npt.NDArray[np.bool_]]:
        """Encode lists.

        Args:
            values: As for :func:`to_lists`, or its result.

        Returns:
            Indices float64 [B, W], where W is H times the maximal length: first index of all
            tokens, then second index. And the lists that were longer, bool [B].

        Raises:
            RowError: If a token is a float of 2^53 or more.
        """
        lists = values if isinstance(values, TokenLists) else to_lists(values, self._separator)
        index, lengths = self._tokens.encode_lists(lists), lists.lengths  # [T, H], [lists]
        if (present := index[:, 0] != MISSING_INDEX).sum() < len(index):
            # Missing tokens, such as null, are not part of a list.
            list_of_token = np.repeat(np.arange(len(lengths)), lengths)[present]
            index, lengths = index[present], np.bincount(list_of_token, minlength=len(lengths))
        kept = np.minimum(lengths, self._max_length)
        start = lengths.cumsum() - (kept if self._keeps_last else lengths)
        row = np.repeat(np.arange(len(kept)), kept)
        column = np.arange(kept.sum()) - np.repeat(kept.cumsum() - kept, kept)
        padded = np.zeros((len(kept), self._tokens.columns_per_token, self._max_length))
        padded[row, :, column] = index[start[row] + column]
        return padded.reshape(len(kept), -1)[lists.list_of], (kept < lengths)[lists.list_of]
