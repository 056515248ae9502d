"""Learn a feature schema from a data frame, and encode frames as matrices."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.api.types import is_numeric_dtype

from handlers.encoders import TokenLists
from handlers.feature import LISTS, Feature
from handlers.schema import FeatureSchema, Matrix
from handlers.values import LIST_SEPARATOR, hashed_id
from training.data.extension import extended
from training.data.sources import DataError

Column = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

DEFAULT_FEATURES = (
    "item_ctr",
    "item_cvr",
    "item_price",
    "user_age",
    "user_gender",
    "cross_age_x_ctr",
    "cross_gender_x_price",
)
# Cross features, computed as the product of two others where the data or a request lacks them.
CROSSES = {
    "cross_age_x_ctr": ("user_age", "item_ctr"),
    "cross_gender_x_price": ("user_gender", "item_price"),
}
MIN_TOKEN_COUNT = 2
MAX_VOCABULARY = 1_000_000
HASH_BUCKETS = 1 << 20
_JSON_KEY = re.compile(r'[^"\\\x00-\x1f]+')  # keys that the decoder of requests accepts
# Rows encoded in one go: the float64 values and token objects of a large table would fill memory.
CHUNK_ROWS = 1 << 18


def computable_crosses(features: Sequence[str]) -> list[str]:
    """Return the cross features whose two factors are also among ``features``."""
    return [name for name in features if set(CROSSES.get(name, {""})) <= set(features)]


def fit_schema(
    train: pd.DataFrame, drafts: Sequence[Feature], base: FeatureSchema | None = None
) -> FeatureSchema:
    """Learn defaults, ranges and vocabularies from the training split.

    Args:
        train: The training split as :func:`training.data.tables.read_table` returns it.
        drafts: The features in order, without what is learned.
        base: The schema of an earlier version, which the new one extends.

    Returns:
        The schema. A number that is missing in some rows has the default None, and the model
        learns what a missing value means. Any other has the default 0.

    Raises:
        DataError: If there is no feature, a name repeats or cannot be a JSON key, or a numeric
            feature was read as text; or if the features are not those of ``base``.
    """
    features = [draft.name for draft in drafts]
    if not features:
        raise DataError("features: expected the name of a column or more, got none")
    if repeated := [name for name, n in Counter(features).items() if n > 1]:
        raise DataError(f"features: expected each column once, got {', '.join(repeated)} again")
    if odd := [name for name in features if not _JSON_KEY.fullmatch(name)]:
        raise DataError(
            f"features: expected names without quotes, backslashes and control characters, got "
            f"{', '.join(map(repr, odd))}; rename the columns"
        )
    _log_cut_lists(train, drafts)
    crosses = computable_crosses(features)
    learned = []
    for draft in drafts:
        name = draft.name
        if draft.cardinality:
            learned.append(_with_vocabulary(draft, _token_counts(train, drafts, draft)))
        elif draft.kind == "number":
            if name in train and not is_numeric_dtype(train[name]):
                raise DataError(f"{name}: is an id in this data; name it in --categorical too")
            seen_missing = name in train and bool(train[name].isna().any())
            learned.append(
                replace(
                    draft,
                    default=None if seen_missing else 0.0,
                    product_of=CROSSES[name] if name in crosses else None,
                )
            )
        else:
            learned.append(replace(draft, default=None) if draft.kind == "age" else draft)
    schema = FeatureSchema(_with_ranges(learned, train))
    return schema if base is None else extended(base, schema)


def _log_cut_lists(train: pd.DataFrame, drafts: Sequence[Feature]) -> None:
    """Log how many lists are longer than the model reads."""
    for draft in drafts:
        if draft.kind in LISTS and draft.name in train:
            lists = train[draft.name].dropna()
            n_joints = pc.count_substring(pa.array(lists, pa.large_string()), LIST_SEPARATOR)
            n_cut = int((n_joints.to_numpy() >= draft.max_length).sum())
            if n_cut:
                logger.info(
                    "%s: %s of %s lists are longer than --max-%s %d",
                    draft.name,
                    f"{n_cut:,}",
                    f"{len(lists):,}",
                    "values" if draft.kind == "multi" else "history",
                    draft.max_length,
                )


def _with_ranges(features: Sequence[Feature], train: pd.DataFrame) -> list[Feature]:
    """Return the features with the ranges of the numbers."""
    numbers = [f for f in features if f.is_number or f.kind == "time"]
    if not numbers:
        return list(features)
    schema = FeatureSchema(numbers)
    matrix = to_matrix(schema, train)
    ranged = {}
    for f in numbers:
        if f.is_number:
            column = matrix[:, schema.columns[f.name].start]
            ranged[f.name] = replace(f, train_range=_range(column))
            if f.kind == "age" and not np.isnan(column).any():
                ranged[f.name] = replace(ranged[f.name], default=0.0)
    return [ranged.get(f.name, f) for f in features]


def _range(values: Column) -> tuple[float, float] | None:
    seen = values[~np.isnan(values)]
    # Through text, so that the JSON reads 0.005 and not 0.004999999888241291.
    return (float(str(seen.min())), float(str(seen.max()))) if len(seen) else None


def _token_counts(
    train: pd.DataFrame, drafts: Sequence[Feature], category: Feature
) -> pd.Series[int]:
    """Count the tokens of a category, in histories too."""
    columns = [
        draft for draft in drafts if draft.name == category.name or draft.items == category.name
    ]
    counts = pd.concat(
        [
            train[f.name].value_counts() if f.kind == "category" else _list_counts(train[f.name])
            for f in columns
        ]
    )
    if category.hash_ids:
        counts.index = counts.index.map(hashed_id)
    return counts.groupby(level=0).sum()


def _list_counts(cells: pd.Series) -> pd.Series[int]:
    lists = _token_lists(cells)
    return pd.Series(dict(zip(lists.tokens, np.bincount(lists.flat).tolist(), strict=False)))


def _with_vocabulary(draft: Feature, counts: pd.Series[int]) -> Feature:
    """Return a category with its frequent and its drafted tokens; with hashes if too many."""
    if draft.hash_buckets:
        return draft
    always = [token for token in draft.vocabulary if token not in counts.index]
    counts = pd.concat([counts, pd.Series(0, index=pd.Index(always, dtype=counts.index.dtype))])
    kept = counts[(counts >= MIN_TOKEN_COUNT) | counts.index.isin(draft.vocabulary)]
    if len(kept) > MAX_VOCABULARY and not draft.vocabulary:
        return replace(draft, hash_buckets=HASH_BUCKETS)
    # Most frequent first, ties sorted by token: the same data gives the same indices.
    ordered = pd.DataFrame({"token": kept.index, "n": kept.to_numpy()})
    ordered = ordered.sort_values(["n", "token"], ascending=[False, True])
    return replace(draft, vocabulary=tuple(ordered["token"]))


def to_matrix(schema: FeatureSchema, frame: pd.DataFrame) -> Matrix:
    """Encode the rows of a data frame as request rows are encoded, float32 [B, C].

    Args:
        schema: The schema.
        frame: The data frame; it may lack cross features.
    """
    matrix = np.empty((len(frame), schema.n_columns), dtype=np.float32)
    for start in range(0, len(frame), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        columns: dict[str, Any] = {}
        for feature in schema.features:
            if feature.name in frame:
                values = frame[feature.name].iloc[rows]
                if feature.kind in LISTS:
                    columns[feature.name] = _token_lists(values)
                    continue
                if feature.kind == "category":
                    values = values.astype(object).where(values.notna(), None)
                columns[feature.name] = values.to_numpy()
        matrix[rows] = schema.matrix(schema.raw_columns(columns))
    return matrix


def _token_lists(cells: pd.Series) -> TokenLists:
    """Split cells that :class:`training.data.cells.ListReader` has joined."""
    column = pa.array(cells, pa.large_string(), from_pandas=True)
    if isinstance(column, pa.ChunkedArray):  # as pandas holds what was read in batches
        column = column.combine_chunks()
    lists = pc.split_pattern(column, LIST_SEPARATOR)
    distinct = pc.list_flatten(lists).dictionary_encode()
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    return TokenLists(
        distinct.dictionary.to_pylist(),
        distinct.indices.to_numpy().astype(np.int64),
        lengths.to_numpy().astype(np.int64),
        np.arange(len(cells)),
    )
