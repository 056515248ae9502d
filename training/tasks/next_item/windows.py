"""Windows over training sequences, in which every item is a target once.

Shapes: W windows, L window length, U users, B windows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from handlers.feature import FIRST_TOKEN_INDEX, MISSING_INDEX, OOV_INDEX
from handlers.histories import pad_histories
from training.engine.fit import OOV_SHARE
from training.metrics.retrieval import Indices


class Windows(NamedTuple):
    """Parts of sequences with the items to predict, padded at the front.

    Attributes:
        users: Position of each window's user, int64 [W].
        histories: Indices of the items before each target, int64 [W, L].
        targets: Index of the item that follows ``histories[:, : step + 1]`` at each step, int64
            [W, L]; 0 for a step that is not predicted in this window.
    """

    users: Tensor
    histories: Tensor
    targets: Tensor

    def to(self, device: str) -> Windows:
        """Copy the windows to a device."""
        return Windows(*(part.to(device) for part in self))


def cut_windows(train: Sequence[Indices], length: int) -> Windows:
    """Cut sequences into overlapping windows.

    Each item is the target of one step. The windows of a long sequence overlap by half, so that a
    target has at least half a window of history where the sequence has that many items.

    Args:
        train: Item indices of each user, U int64 arrays.
        length: Largest length of a window.
    """
    users, histories, targets = [], [], []
    for user, items in enumerate(train):
        before = np.concatenate([[MISSING_INDEX], items[:-1]])
        stop = len(items)
        while stop > 0:
            start = max(stop - length, 0)
            first = stop - (length + 1) // 2 if start else 0
            users.append(user)
            histories.append(before[start:stop])
            targets.append(
                np.where(np.arange(start, stop) >= first, items[start:stop], MISSING_INDEX)
            )
            stop = first
    return Windows(
        torch.tensor(users, dtype=torch.int64),
        pad_histories(histories, length),
        pad_histories(targets, length),
    )


def hide_items(histories: Tensor, share: float = OOV_SHARE) -> Tensor:
    """Replace random items by the out-of-vocabulary index, so that training learns its embedding.

    Args:
        histories: Item indices, int64 [B, L]; not changed.
        share: Share of the items to hide.
    """
    drawn = torch.rand(histories.shape, device=histories.device) < share
    hidden = drawn & (histories >= FIRST_TOKEN_INDEX)
    return histories.masked_fill(hidden, OOV_INDEX)
