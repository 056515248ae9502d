"""The features of a model, and the encoding of raw values as its input matrix.

Training and serving both call :meth:`FeatureSchema.matrix`, so they cannot treat a missing value,
an overflow or a cross feature differently.

Shapes: B instances, F features, C matrix columns (F, plus one for each hashed category).
"""

from __future__ import annotations

import json
import math
import struct
import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import astuple

from handlers.counts import FeatureCounts
from handlers.values import MAX_EXACT, LostDigitsError, Token, row_token, to_token

SCHEMA_VERSION = 1
VOCABULARIES_FILE = "vocabularies.json"

MISSING_INDEX = 0
OOV_INDEX = 1
FIRST_TOKEN_INDEX = 2

Matrix = npt.NDArray[np.float32]
RawMatrix = npt.NDArray[np.float64]


class _Indices(dict[Token | None, int]):
    """Indices of tokens in any spelling; unknown tokens have the out-of-vocabulary index."""

    def __missing__(self, token: Token | None) -> int:
        return self.get(to_token(token), OOV_INDEX)


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of a model.

    Attributes:
        name: Key in a request's row and column in the training data.
        kind: ``number``, or ``category`` for an id or a string.
        default: Replaces a missing number. None if training saw missing cells: NaN then reaches
            the model, which has learned how to treat it.
        train_range: Smallest and largest number of the training split.
        product_of: Makes this a cross feature: the two numbers whose product replaces a missing
            value.
        vocabulary: Known tokens of a category; token i has index i + 2, after 0 for missing and
            1 for out of vocabulary.
        hash_buckets: If positive, the category is too large for a vocabulary and takes two matrix
            columns, each a stable hash of the token modulo this number.
    """

    name: str
    kind: Literal["number", "category"] = "number"
    default: float | None = 0.0
    train_range: tuple[float, float] | None = None
    product_of: tuple[str, str] | None = None
    vocabulary: tuple[str, ...] = ()
    hash_buckets: int = 0

    @property
    def width(self) -> int:
        """Number of matrix columns of the feature."""
        return 2 if self.hash_buckets else 1

    @property
    def cardinality(self) -> int:
        """Number of indices of a category, including the two reserved ones; 0 for a number."""
        if self.kind == "number":
            return 0
        return FIRST_TOKEN_INDEX + (self.hash_buckets or len(self.vocabulary))


class _CategoryEncoder:
    """Encodes the tokens of one category as matrix columns of indices."""

    def __init__(self, feature: Feature) -> None:
        self._name, self._buckets = feature.name, feature.hash_buckets
        self._index = _Indices({None: MISSING_INDEX})
        for i, token in enumerate(feature.vocabulary, start=FIRST_TOKEN_INDEX):
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

    def encode(self, tokens: Collection[Token | None]) -> RawMatrix:
        """Return indices, float64 [B, width]; every index fits a float64 exactly.

        Raises:
            RowError: If a token is a float beyond 2^53.
        """
        try:
            if self._buckets:
                hashed = [self._hash(token) for token in tokens]
                return np.array(hashed, dtype=np.float64).reshape(-1, 2)
            index = self._index
            return np.array([index[token] for token in tokens], dtype=np.float64)[:, None]
        except LostDigitsError:
            for row, token in enumerate(tokens):
                row_token(token, row, self._name)  # raises for the token
            raise

    def _hash(self, value: Token | None) -> tuple[int, int]:
        token = to_token(value)
        if token is None:
            return MISSING_INDEX, MISSING_INDEX
        digest = blake2b(token.encode("utf-8", "replace"), digest_size=16)
        hashes = digest.digest()
        return (
            FIRST_TOKEN_INDEX + int.from_bytes(hashes[:8], "big") % self._buckets,
            FIRST_TOKEN_INDEX + int.from_bytes(hashes[8:], "big") % self._buckets,
        )


def _value_type(feature: Feature) -> Any:
    return float | None if feature.kind == "number" else Token | None


class FeatureSchema:
    """The features of a model in their order.

    Args:
        features: At least one, with unique names; ``product_of`` names numbers of this schema.

    Attributes:
        features: The features.
        names: Names of the features.
        starts: First matrix column of each feature, int64 [F].
        n_columns: C.

    Raises:
        ValueError: If the features do not meet these conditions.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.names = tuple(f.name for f in features)
        duplicates = [name for name, n in Counter(self.names).items() if n > 1]
        if duplicates or not features:
            raise ValueError(f"expected distinct feature names, got {list(self.names)}")
        numbers = {f.name for f in features if f.kind == "number" and f.product_of is None}
        self._encoders = {f.name: _CategoryEncoder(f) for f in features if f.kind == "category"}
        starts = np.cumsum([0, *(f.width for f in features)])
        self.n_columns = int(starts[-1])
        column = {f.name: int(start) for f, start in zip(features, starts, strict=False)}
        self._slices = [slice(column[f.name], column[f.name] + f.width) for f in features]
        self.starts = starts[:-1]
        self._crosses: list[tuple[int, int, int]] = []
        for f in features:
            if f.product_of is not None:
                if not numbers.issuperset(f.product_of):
                    raise ValueError(f"{f.name}: product_of {f.product_of} is not two numbers")
                left, right = f.product_of
                self._crosses.append((column[f.name], column[left], column[right]))
        crosses = [cross for cross, _, _ in self._crosses]
        self._computed = np.isin(np.arange(self.n_columns), crosses)
        self._category = np.zeros(self.n_columns, dtype=bool)
        self._default = np.zeros(self.n_columns, dtype=np.float32)
        self._low = np.full(self.n_columns, np.finfo(np.float32).min)
        self._high = np.full(self.n_columns, np.finfo(np.float32).max)
        for f, columns in zip(features, self._slices, strict=True):
            self._category[columns] = f.kind == "category"
            self._default[columns] = np.nan if f.default is None else f.default
            if f.train_range is not None:
                self._low[columns], self._high[columns] = f.train_range

    @property
    def column_features(self) -> list[Feature]:
        """Feature of each matrix column, C long."""
        return [f for f in self.features for _ in range(f.width)]

    @property
    def cardinalities(self) -> list[int]:
        """Number of indices in each matrix column, 0 for a number, C long."""
        return [f.cardinality for f in self.column_features]

    # Rows of requests

    def row_struct(self, forbid_unknown: bool) -> type[msgspec.Struct]:
        """Return a struct type that decodes and validates a row given as an object."""
        fields: list[tuple[str, Any, Any]] = [
            (f"f{i}", _value_type(f), math.nan if f.kind == "number" else None)
            for i, f in enumerate(self.features)
        ]
        rename = {f"f{i}": name for i, name in enumerate(self.names)}
        return msgspec.defstruct(
            "Row", fields, rename=rename, forbid_unknown_fields=forbid_unknown, gc=False
        )

    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the type of a row: an object, or a vector of exactly F values."""
        vector: Any = types.GenericAlias(tuple, tuple(_value_type(f) for f in self.features))
        return self.row_struct(forbid_unknown) | vector

    def raw_matrix(self, rows: Sequence[Any]) -> RawMatrix:
        """Convert rows of :meth:`row_type` to values with NaN for missing, float64 [B, C]."""
        values = [row if type(row) is tuple else astuple(row) for row in rows]
        if self._encoders:
            return self.raw_columns(dict(zip(self.names, zip(*values, strict=True), strict=True)))
        flat = list(chain.from_iterable(values))
        try:
            # struct.pack takes a sixth of the time of np.array, but refuses None.
            return np.frombuffer(struct.pack(f"{len(flat)}d", *flat)).reshape(len(rows), -1)
        except struct.error:
            return np.array(flat, dtype=np.float64).reshape(len(rows), -1)

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Matrix:
        """Encode rows given as objects with valid values, float32 [B, C]."""
        row_type = self.row_struct(forbid_unknown=False)
        return self.matrix(self.raw_matrix([msgspec.convert(row, row_type) for row in rows]))

    def raw_columns(self, columns: Mapping[str, Collection[Any]]) -> RawMatrix:
        """Convert columns of equal length to values with NaN for missing, float64 [B, C].

        Args:
            columns: Values by feature name; a cross feature may be left out. A missing number is
                None or NaN, a missing token None.
        """
        n_rows = len(next(iter(columns.values())))
        raw = np.full((n_rows, self.n_columns), np.nan)
        for f, target in zip(self.features, self._slices, strict=True):
            if f.name not in columns:
                continue
            values = columns[f.name]
            if f.kind == "category":
                raw[:, target] = self._encoders[f.name].encode(values)
            else:
                raw[:, target.start] = np.asarray(values, dtype=np.float64)
        return raw

    # Values from rows or columns

    def matrix(self, raw: RawMatrix, counts: FeatureCounts | None = None) -> Matrix:
        """Fill missing values, compute cross features and count unusual values.

        Args:
            raw: Values with NaN for missing, float64 [B, C].
            counts: Gets the numbers of unusual values.

        Returns:
            float32 [B, C], free of infinities; NaN only where a feature's default is None.
        """
        with np.errstate(over="ignore"):
            x = raw.astype(np.float32)
        if counts is not None:
            # NaN compares false. An overflow is now an infinity, which is outside every range.
            self._add(counts.out_of_range, (x < self._low) | (x > self._high))
            if self._encoders:
                self._add(counts.out_of_vocabulary, self._category & (x == OOV_INDEX))
                self._add(counts.missing, self._category & (x == MISSING_INDEX))
        finite = np.isfinite(x)
        if finite.all():
            return x
        if counts is not None:
            self._add(counts.missing, np.isnan(x) & ~self._computed)
        gaps = ~finite
        x = np.where(gaps & ~self._computed, self._default, x)
        for cross, left, right in self._crosses:
            with np.errstate(over="ignore", invalid="ignore"):
                product = x[:, left] * x[:, right]
            product = np.where(np.isfinite(product), product, self._default[cross])
            x[:, cross] = np.where(gaps[:, cross], product, x[:, cross])
        return x

    def _add(self, total: npt.NDArray[np.int64], hits: npt.NDArray[np.bool_]) -> None:
        # The two columns of a hashed category agree, so the first column of each feature is enough.
        total += hits.sum(axis=0)[self.starts]

    # JSON

    def to_json(self) -> list[dict[str, Any]]:
        """Return the features as stored in the meta file; vocabularies have their own file."""
        items = []
        for f in self.features:
            item = asdict(f)
            item["vocabulary_size"] = len(item.pop("vocabulary"))
            items.append(item)
        return items

    def vocabularies(self) -> dict[str, list[str]]:
        """Return the tokens of each category by its name."""
        return {f.name: list(f.vocabulary) for f in self.features if f.kind == "category"}

    @classmethod
    def from_json(
        cls, items: Sequence[Mapping[str, Any]], vocabularies: Mapping[str, Sequence[str]]
    ) -> FeatureSchema:
        """Build a schema from the results of :meth:`to_json` and :meth:`vocabularies`.

        Raises:
            ValueError: If a vocabulary does not have the size that its feature states.
        """
        features = []
        for item in items:
            values = {key: item[key] for key in item if key != "vocabulary_size"}
            for key in ("train_range", "product_of"):
                if values.get(key) is not None:
                    values[key] = tuple(values[key])
            tokens = tuple(vocabularies.get(item["name"], ()))
            if len(tokens) != item.get("vocabulary_size", 0):
                raise ValueError(
                    f"{item['name']}: expected a vocabulary of {item['vocabulary_size']} tokens, "
                    f"got {len(tokens)}"
                )
            features.append(Feature(**values, vocabulary=tokens))
        return cls(features)


def read_vocabularies(model_dir: Path) -> dict[str, list[str]]:
    """Read the tokens of each category from an unpacked archive or artifact folder."""
    vocabularies: dict[str, list[str]] = json.loads((model_dir / VOCABULARIES_FILE).read_text())
    return vocabularies
