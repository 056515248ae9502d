"""Request rows of models that embed a user by features and a history.

``{"user_features": {"user_age": 30, ...}, "history_item_ids": ["item_7", ...]}``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from handlers.feature import FIRST_TOKEN_INDEX, OOV_INDEX
from handlers.request_rows import HISTORY_KEY, USER_FEATURES_KEY
from handlers.schema import FeatureSchema, Matrix
from training import golden
from training.golden import UNKNOWN_TOKEN, golden_matrix, request_rows
from training.metrics.retrieval import Indices
from training.tasks.next_item.split import LeaveOneOutSplit

Row = dict[str, Any]


def history_rows(
    schema: FeatureSchema,
    users: pd.DataFrame,
    histories: Sequence[Indices],
    vocabulary: Sequence[str],
) -> list[Row]:
    """Return the request row of each user.

    Args:
        schema: Schema of the user features.
        users: User features before encoding, B rows.
        histories: Item indices, oldest first, B int64 arrays.
        vocabulary: Items by index, from index 2 on.
    """
    return [
        {USER_FEATURES_KEY: features, HISTORY_KEY: _tokens(history, vocabulary)}
        for features, history in zip(request_rows(schema, users), histories, strict=True)
    ]


def golden_rows(schema: FeatureSchema, users: pd.DataFrame, split: LeaveOneOutSplit) -> list[Row]:
    """Return rows that cover what callers send.

    Some lack a feature, some have an unknown item at the end of the history, and some are the bare
    features without a history.

    Args:
        schema: Schema of the user features.
        users: User features before encoding, in the order of the split's users.
        split: The sequences; a history is one without its last item.
    """
    rows: list[Row] = [
        {USER_FEATURES_KEY: features, HISTORY_KEY: _tokens(items[:-1], split.vocabulary)}
        for features, items in zip(golden.golden_rows(schema, users), split.sequences, strict=False)
    ]
    rows[2::8] = [row[USER_FEATURES_KEY] for row in rows[2::8]]
    for row in rows[4::8]:
        row[HISTORY_KEY].append(UNKNOWN_TOKEN)
    return rows


def encode_rows(
    schema: FeatureSchema, vocabulary: Sequence[str], rows: Sequence[Row]
) -> tuple[Matrix, list[Indices]]:
    """Encode request rows as training encodes its data.

    Args:
        schema: Schema of the user features.
        vocabulary: Items by index, from index 2 on.
        rows: B rows; features may be wrapped or bare, the history may be missing.

    Returns:
        The features, float32 [B, C], and the item indices of the histories, B int64 arrays.
    """
    index = {token: i for i, token in enumerate(vocabulary, FIRST_TOKEN_INDEX)}
    histories = [
        np.array(
            [index.get(item, OOV_INDEX) for item in row.get(HISTORY_KEY) or []], dtype=np.int64
        )
        for row in rows
    ]
    return golden_matrix(schema, [row.get(USER_FEATURES_KEY, row) for row in rows]), histories


def _tokens(items: Indices, vocabulary: Sequence[str]) -> list[str]:
    return [
        vocabulary[i - FIRST_TOKEN_INDEX] if i >= FIRST_TOKEN_INDEX else UNKNOWN_TOKEN
        for i in items.tolist()
    ]
