"""The features of a model, and the encoding of raw values as its input matrix.

Training and serving both call :meth:`FeatureSchema.matrix`, so they cannot treat a missing value,
an overflow or a cross feature differently.

Shapes: B instances, F features, C matrix columns.
"""

from __future__ import annotations

import json
import math
import struct
import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import astuple

from handlers.counts import FeatureCounts
from handlers.encoders import (
    ListEncoder,
    RawMatrix,
    TokenEncoder,
    TokenLists,
)
from handlers.feature import (
    FIRST_TOKEN_INDEX,
    LISTS,
    MISSING_INDEX,
    OOV_INDEX,
    TIMES,
    Cardinality,
    Feature,
    value_type,
)
from handlers.times import (
    HOURS,
    WEEKDAYS,
    Seconds,
    age_in_days,
    calendar,
    time_zone,
    to_seconds,
)

SCHEMA_VERSION = 1
VOCABULARIES_FILE = "vocabularies.json"

Matrix = npt.NDArray[np.float32]


class FeatureSchema:
    """The features of a model in their order.

    Args:
        features: At least one, with unique names; the features that others name are in the schema.

    Attributes:
        features: The features.
        names: Names of the features.
        starts: First matrix column of each feature, int64 [F].
        columns: Matrix columns of each feature, by its name.
        cardinalities: Number of indices in the matrix columns; 0 for a number. The columns of a
            list share one entry.
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
        self._by_name = {f.name: f for f in features}
        self._zones = {f.name: time_zone(f.time_zone) for f in features if f.kind in TIMES}
        self._tokens = {f.name: TokenEncoder(f) for f in features if f.cardinality}
        self._lists = {
            f.name: ListEncoder(
                self._tokens[self.items_of(f).name], f.max_length, f.separator, f.kind == "history"
            )
            for f in features
            if f.kind in LISTS
        }
        widths = [self._width(f) for f in features]
        starts = np.cumsum([0, *widths])
        self.n_columns = int(starts[-1])
        self.starts = starts[:-1]
        self.columns = {
            f.name: slice(int(start), int(start) + width)
            for f, start, width in zip(features, starts, widths, strict=False)
        }
        self.cardinalities: list[Cardinality] = list(
            chain.from_iterable(self._cardinalities(f) for f in features)
        )
        self._crosses = [self._cross(f, *f.product_of) for f in features if f.product_of]
        crosses = [cross for cross, _, _ in self._crosses]
        self._computed = np.isin(np.arange(self.n_columns), crosses)
        self._is_index = np.zeros(self.n_columns, dtype=bool)
        # The two columns of a hashed category agree, so the first one counts for both.
        self._counted = np.isin(np.arange(self.n_columns), self.starts)
        self._default = np.zeros(self.n_columns, dtype=np.float32)
        self._low = np.full(self.n_columns, np.finfo(np.float32).min)
        self._high = np.full(self.n_columns, np.finfo(np.float32).max)
        for f, columns in zip(features, self.columns.values(), strict=True):
            self._is_index[columns] = not f.is_number
            if f.kind in LISTS:
                self._counted[columns.start : columns.start + f.max_length] = True
            self._default[columns] = np.nan if f.default is None else f.default
            if f.train_range is not None:
                self._low[columns], self._high[columns] = f.train_range

    def _width(self, f: Feature) -> int:
        """Return the number of matrix columns of a feature."""
        if f.kind == "time":
            return 2
        if f.is_number:
            if f.kind == "age" and self._feature(f.event).kind != "time":
                raise ValueError(f"{f.name}: {f.event} is not a time")
            return 1
        per_token = self._tokens[self.items_of(f).name].columns_per_token
        return per_token * f.max_length if f.kind in LISTS else per_token

    def _cardinalities(self, f: Feature) -> list[Cardinality]:
        if f.is_number:
            return [0]
        if f.kind == "time":
            return [FIRST_TOKEN_INDEX + HOURS, FIRST_TOKEN_INDEX + WEEKDAYS]
        items = self.items_of(f)
        n_fields = self._tokens[items.name].columns_per_token
        if f.kind == "category":
            return [f.cardinality] * n_fields
        if f.kind == "multi":
            return [(f.cardinality, f.max_length)] * n_fields
        first = self.columns[items.name].start
        return [(items.cardinality, f.max_length, first + i) for i in range(n_fields)]

    def items_of(self, f: Feature) -> Feature:
        """Return the feature with the vocabulary of a feature's tokens."""
        items = self._feature(f.items) if f.kind == "history" else f
        if items.kind not in ("category", "multi"):
            raise ValueError(f"{f.name}: {items.name} is not a category")
        return items

    def _feature(self, name: str) -> Feature:
        try:
            return self._by_name[name]
        except KeyError:
            raise ValueError(f"expected a feature {name}, got {list(self.names)}") from None

    def _cross(self, f: Feature, left: str, right: str) -> tuple[int, int, int]:
        """Return the matrix columns of a cross feature and its two factors."""
        factors = [self._by_name.get(name) for name in (left, right)]
        if any(x is None or x.kind != "number" or x.product_of for x in factors):
            raise ValueError(f"{f.name}: product_of {(left, right)} is not two numbers")
        cross, *columns = (self.columns[name].start for name in (f.name, left, right))
        return cross, columns[0], columns[1]

    @property
    def category_columns(self) -> dict[int, int]:
        """Number of indices of each matrix column that holds one index, by the column."""
        found: dict[int, int] = {}
        column = 0
        for entry in self.cardinalities:
            if isinstance(entry, int) and entry:
                found[column] = entry
            column += 1 if isinstance(entry, int) else entry[1]
        return found

    @property
    def column_features(self) -> list[Feature]:
        """Feature of each matrix column, C long."""
        return [
            f
            for f, c in zip(self.features, self.columns.values(), strict=True)
            for _ in range(c.stop - c.start)
        ]

    # Rows of requests

    def row_struct(self, forbid_unknown: bool) -> type[msgspec.Struct]:
        """Return a struct type that decodes and validates a row given as an object."""
        fields: list[tuple[str, Any, Any]] = [
            (f"f{i}", value_type(f), math.nan if f.kind == "number" else None)
            for i, f in enumerate(self.features)
        ]
        rename = {f"f{i}": name for i, name in enumerate(self.names)}
        return msgspec.defstruct(
            "Row", fields, rename=rename, forbid_unknown_fields=forbid_unknown, gc=False
        )

    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the type of a row: an object, or a vector of exactly F values."""
        vector: Any = types.GenericAlias(tuple, tuple(value_type(f) for f in self.features))
        return self.row_struct(forbid_unknown) | vector

    def raw_matrix(self, rows: Sequence[Any], counts: FeatureCounts | None = None) -> RawMatrix:
        """Convert rows of :meth:`row_type` as :meth:`raw_columns` does, float64 [B, C].

        Args:
            rows: The rows.
            counts: Gets the numbers of truncated lists.

        Raises:
            RowError: If a value cannot be encoded.
        """
        values = [row if type(row) is tuple else astuple(row) for row in rows]
        if any(f.kind != "number" for f in self.features):
            columns = dict(zip(self.names, zip(*values, strict=True), strict=True))
            return self.raw_columns(columns, counts)
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

    def raw_columns(
        self, columns: Mapping[str, Collection[Any]], counts: FeatureCounts | None = None
    ) -> RawMatrix:
        """Convert columns of equal length to values with NaN for missing, float64 [B, C].

        Args:
            columns: Values by feature name; a cross feature may be left out. A missing number is
                None or NaN, any other missing value None. Lists may be a
                :class:`handlers.encoders.TokenLists`, times UTC seconds as float64 [B].
            counts: Gets the numbers of truncated lists.

        Raises:
            RowError: If a value cannot be encoded.
        """
        n_rows = _n_rows(next(iter(columns.values())))
        raw = np.full((n_rows, self.n_columns), np.nan)
        seconds = {
            name: self._seconds(name, columns[name]) for name in self._zones if name in columns
        }
        for i, (f, target) in enumerate(zip(self.features, self.columns.values(), strict=True)):
            if f.name not in columns:
                if not f.is_number:
                    raw[:, target] = MISSING_INDEX
                continue
            values = columns[f.name]
            if f.kind == "category":
                raw[:, target] = self._tokens[f.name].encode(values)
            elif f.kind in LISTS:
                raw[:, target], truncated = self._lists[f.name].encode(values)
                if counts is not None:
                    counts.truncated[i] += truncated.sum()
            elif f.kind == "time":
                index = calendar(seconds[f.name], self._zones[f.name]) + FIRST_TOKEN_INDEX
                raw[:, target] = np.nan_to_num(index, nan=MISSING_INDEX)
            elif f.kind == "age":
                if f.event in seconds:
                    raw[:, target.start] = age_in_days(seconds[f.event], seconds[f.name])
            else:
                raw[:, target.start] = np.asarray(values, dtype=np.float64)
        return raw

    def _seconds(self, name: str, values: Collection[Any]) -> Seconds:
        if isinstance(values, np.ndarray) and values.dtype == np.float64:
            return values
        return to_seconds(values, self._zones[name], name)

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
            if self._is_index.any():
                self._add(counts.out_of_vocabulary, self._is_index & (x == OOV_INDEX))
                is_missing = self._is_index & (x == MISSING_INDEX)
                counts.missing += is_missing[:, self.starts].sum(axis=0)
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
        total += np.add.reduceat(hits.sum(axis=0) * self._counted, self.starts)

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
        return {f.name: list(f.vocabulary) for f in self.features if f.cardinality}

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


def _n_rows(values: Collection[Any]) -> int:
    return len(values.list_of if isinstance(values, TokenLists) else values)


def read_vocabularies(model_dir: Path) -> dict[str, list[str]]:
    """Read the tokens of each category from an unpacked archive or artifact folder."""
    vocabularies: dict[str, list[str]] = json.loads((model_dir / VOCABULARIES_FILE).read_text())
    return vocabularies
