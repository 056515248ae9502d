"""The leave-one-out split of item sequences: each user's last item is the test.

Shapes: U users, B of them with a held-out item, N items of the vocabulary. The index of an item is
its position in the vocabulary plus 2: index 0 is padding, index 1 an item out of vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from handlers.feature import FIRST_TOKEN_INDEX, OOV_INDEX
from training.data.extension import extended_vocabulary
from training.data.sources import DataError
from training.metrics.retrieval import Indices

MAX_HELD_OUT_USERS = 20_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """One item to predict for each user, with the history before it.

    Attributes:
        users: Positions of the users in :attr:`LeaveOneOutSplit.users`, int64 [B].
        histories: Indices of the items before the target, oldest first, B int64 arrays.
        targets: Index of the item that came next, int64 [B].
    """

    users: Indices
    histories: Sequence[Indices]
    targets: Indices

    def __len__(self) -> int:
        """Return B."""
        return len(self.users)

    def chunks(self, size: int) -> Iterator[HeldOut]:
        """Yield consecutive parts of at most ``size`` users."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield HeldOut(self.users[rows], self.histories[rows], self.targets[rows])


@dataclass(frozen=True)
class LeaveOneOutSplit:
    """The item sequence of each user, split into training, validation and test.

    The last item of a user is the test. For a share of the users, the item before it is held out
    for validation as well. It is not held out for all users: the test would then lie one item
    further from what the model was trained on.

    Attributes:
        users: User ids, U.
        vocabulary: Items that are frequent enough in training, the most frequent first, N.
        sequences: Item indices of each user, oldest first, U int64 arrays.
        n_held_out: Number of items at each user's end that training does not see, int64 [U], from
            0 (all of them are trained on) to 2 (validation and test).
    """

    users: Sequence[str]
    vocabulary: tuple[str, ...]
    sequences: Sequence[Indices]
    n_held_out: Indices

    @property
    def train(self) -> list[Indices]:
        """The sequences without the held-out items, U int64 arrays."""
        return [
            items[: max(len(items) - n, 0)]
            for items, n in zip(self.sequences, self.n_held_out, strict=True)
        ]

    @property
    def valid(self) -> HeldOut:
        """The second to last item of the validation users."""
        return self._held_out(2)

    @property
    def test(self) -> HeldOut:
        """The last item of the test users."""
        return self._held_out(1)

    def _held_out(self, n_back: int) -> HeldOut:
        lengths = np.array([len(items) for items in self.sequences])
        users = np.flatnonzero((lengths >= n_back) & (self.n_held_out >= n_back))
        if len(users) > MAX_HELD_OUT_USERS:
            rng = np.random.default_rng(0)
            users = np.sort(rng.choice(users, MAX_HELD_OUT_USERS, replace=False))
        return HeldOut(
            users,
            [self.sequences[user][:-n_back] for user in users.tolist()],
            np.array([self.sequences[user][-n_back] for user in users.tolist()], dtype=np.int64),
        )


def leave_one_out(
    users: pd.Series[Any],
    items: pd.Series[Any],
    *,
    min_count: int,
    vocabulary: Sequence[str] = (),
    valid_share: float = 0.0,
    test_share: float = 1.0,
    seed: int = 0,
) -> LeaveOneOutSplit:
    """Group interactions by user, hold items out, and index the items that remain.

    Args:
        users: User of each interaction, oldest interaction first.
        items: Item of each interaction; rows without a user or an item are dropped.
        min_count: Items that occur less often in training are out of vocabulary.
        vocabulary: Items that are known from an earlier version.
        valid_share: Share of the users with a validation item; needs ``test_share`` 1.
        test_share: Share of the users with a test item.
        seed: Seed of the choice of validation and test users.

    Raises:
        DataError: If fewer than two items are frequent enough to train on.
    """
    known = (items.notna() & users.notna()).to_numpy()
    if not known.all():
        logger.warning("skipped %d rows without a user or an item", (~known).sum())
    user_codes, user_ids = pd.factorize(users[known])
    item_codes, tokens = pd.factorize(items[known])
    order = np.argsort(user_codes, kind="stable")
    user_codes, item_codes = user_codes[order], item_codes[order]
    lengths = np.bincount(user_codes, minlength=len(user_ids))
    ends = lengths.cumsum()
    rng = np.random.default_rng(seed)
    n_held_out = 1 + (rng.random(len(lengths)) < valid_share)
    if test_share < 1:
        n_held_out[rng.permutation(len(lengths))[round(len(lengths) * test_share) or 1 :]] = 0
    in_training = np.arange(len(user_codes)) < (ends - n_held_out)[user_codes]

    counts = np.bincount(item_codes[in_training], minlength=len(tokens))
    frequent = np.flatnonzero(counts >= min_count).tolist()
    # Ties are broken by name, so that the same data always gives the same indices.
    frequent.sort(key=lambda code: (-counts[code], tokens[code]))
    if len(frequent) < 2:
        raise DataError(
            f"expected 2 items or more that come {min_count} times or more before the end of "
            f"sequences, got {len(frequent)} in {len(user_ids)} sequences; lower --min-count?"
        )
    known_items = extended_vocabulary(vocabulary, [str(tokens[code]) for code in frequent])
    index_of = {item: i for i, item in enumerate(known_items, FIRST_TOKEN_INDEX)}
    index = np.array([index_of.get(str(token), OOV_INDEX) for token in tokens], dtype=np.int64)
    return LeaveOneOutSplit(
        users=[str(user) for user in user_ids],
        vocabulary=known_items,
        sequences=np.split(index[item_codes], ends[:-1]),
        n_held_out=n_held_out,
    )
