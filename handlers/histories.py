"""Histories of items: from the ids in a request to the indices that a sequence model embeds.

Shapes: B instances, L history length, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from handlers.counts import FeatureCounts
from handlers.errors import RowError
from handlers.feature import MISSING_INDEX, OOV_INDEX, Feature
from handlers.request_rows import HISTORY_KEY
from handlers.schema import FeatureSchema
from handlers.values import Id

Indices = npt.NDArray[np.int64]


class ItemHistories:
    """Looks up items in the vocabulary of training and pads their histories.

    Args:
        vocabulary: Item ids, N; item i has index i + 2, after 0 for padding and 1 for unknown.
        max_history: Longest history that the model reads; of a longer one, it reads the end.

    Attributes:
        schema: One category, the items.
    """

    def __init__(self, vocabulary: Sequence[str], max_history: int) -> None:
        items = Feature(HISTORY_KEY, kind="category", vocabulary=tuple(vocabulary))
        self.schema = FeatureSchema([items])
        self._max_history = max_history

    def index(self, items: Collection[Id]) -> Indices:
        """Return the index of each item, 1 if unknown, int64 [items]."""
        column: Indices = self.schema.raw_columns({HISTORY_KEY: items})[:, 0].astype(np.int64)
        return column

    def padded(self, histories: Sequence[Sequence[Id | None]], counts: FeatureCounts) -> Tensor:
        """Look up and pad histories, leaving out null items.

        Args:
            histories: B lists of items, the latest item last.
            counts: Gets the numbers of null items and of unknown items; the history is its last
                feature.

        Returns:
            Indices as :func:`pad_histories` returns them, int64 [B, L].

        Raises:
            RowError: If an item is a float of 2^53 or more.
        """
        counts.missing[-1] += sum(history.count(None) for history in histories)
        recent = [
            [item for item in history if item is not None][-self._max_history :]
            for history in histories
        ]
        ends = np.cumsum([len(history) for history in recent])
        try:
            index = self.index([item for history in recent for item in history])
        except RowError as error:
            raise error.in_lists(ends.tolist()) from None
        counts.out_of_vocabulary[-1] += (index == OOV_INDEX).sum()
        return pad_histories(np.split(index, ends[:-1]), self._max_history)


def pad_histories(histories: Sequence[Indices], max_history: int) -> Tensor:
    """Pad histories on the left and cut them to their last items.

    Args:
        histories: B arrays of item indices, the latest item last.
        max_history: Upper limit of L.

    Returns:
        The latest item in the last column, 0 before the first, int64 [B, L] with L >= 1.
    """
    length = min(max_history, max((len(history) for history in histories), default=0))
    padded = np.full((len(histories), max(length, 1)), MISSING_INDEX, dtype=np.int64)
    for row, history in zip(padded, histories, strict=True):
        if len(history):
            row[-len(history) :] = history[-max_history:]
    return torch.from_numpy(padded)
