"""Learn a feature schema from a data frame, and encode frames as matrices."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from handlers.schema import Feature, FeatureSchema, Matrix
from training.data.sources import DataError

Column = npt.NDArray[np.float32]

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
    train: pd.DataFrame, features: Sequence[str], categorical: Sequence[str]
) -> FeatureSchema:
    """Learn types, defaults, ranges and vocabularies from the training split.

    Args:
        train: The training split as :func:`training.data.tables.read_table` returns it.
        features: Inputs of the model in order.
        categorical: The features that are categories.

    Returns:
        The schema. A number that is missing in some rows has the default None, and the model
        learns what a missing value means. Any other has the default 0.

    Raises:
        DataError: If there is no feature, a name repeats or cannot be a JSON key, or a numeric
            feature was read as text.
    """
    if not features:
        raise DataError("features: expected the name of a column or more, got none")
    if repeated := [name for name, n in Counter(features).items() if n > 1]:
        raise DataError(f"features: expected each column once, got {', '.join(repeated)} again")
    if odd := [name for name in features if not _JSON_KEY.fullmatch(name)]:
        raise DataError(
            f"features: expected names without quotes, backslashes and control characters, got "
            f"{', '.join(map(repr, odd))}; rename the columns"
        )
    crosses = computable_crosses(features)
    drafts = []
    for name in features:
        if name in categorical:
            drafts.append(_category(name, train[name]))
            continue
        if name in train and not is_numeric_dtype(train[name]):
            raise DataError(f"{name}: is an id in this data; name it in --categorical too")
        seen_missing = name in train and bool(train[name].isna().any())
        drafts.append(
            Feature(
                name,
                default=None if seen_missing else 0.0,
                product_of=CROSSES[name] if name in crosses else None,
            )
        )
    draft = FeatureSchema(drafts)
    columns = to_matrix(draft, train).T
    return FeatureSchema(
        [
            replace(feature, train_range=_range(columns[start]))
            if feature.kind == "number"
            else feature
            for feature, start in zip(draft.features, draft.starts, strict=True)
        ]
    )


def _range(values: Column) -> tuple[float, float] | None:
    seen = values[~np.isnan(values)]
    # Through text, so that the JSON reads 0.005 and not 0.004999999888241291.
    return (float(str(seen.min())), float(str(seen.max()))) if len(seen) else None


def _category(name: str, tokens: pd.Series) -> Feature:
    counts = tokens.value_counts()
    # Most frequent first, ties sorted by token: the same data gives the same indices.
    kept = counts[counts >= MIN_TOKEN_COUNT]
    if len(kept) > MAX_VOCABULARY:
        return Feature(name, kind="category", hash_buckets=HASH_BUCKETS)
    ordered = pd.DataFrame({"token": kept.index, "n": kept.to_numpy()})
    ordered = ordered.sort_values(["n", "token"], ascending=[False, True])
    return Feature(name, kind="category", vocabulary=tuple(ordered["token"]))


def to_matrix(schema: FeatureSchema, frame: pd.DataFrame) -> Matrix:
    """Encode the rows of a data frame as request rows are encoded, float32 [B, C]."""
    matrix = np.empty((len(frame), schema.n_columns), dtype=np.float32)
    for start in range(0, len(frame), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        columns = {}
        for feature in schema.features:
            if feature.name in frame:
                values = frame[feature.name].iloc[rows]
                if feature.kind == "category":
                    values = values.astype(object).where(values.notna(), None)
                columns[feature.name] = values.to_numpy()
        matrix[rows] = schema.matrix(schema.raw_columns(columns))
    return matrix
