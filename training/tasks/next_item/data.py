"""What the sequence models share: their data, the step that they must predict, the baselines.

Shapes: U users, B of them, N items of the vocabulary. An item's index is its place in the
vocabulary plus 2, after 0 for none and 1 for one that training did not keep.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from handlers.schema import FIRST_TOKEN_INDEX, OOV_INDEX
from training.data.sources import DataError
from training.metrics.retrieval import Indices

MAX_HOLDOUT_USERS = 20_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holdout:
    """One step of each user, to be told from those before it.

    Attributes:
        users: Place of each in :attr:`Sequences.users`, int64 [B].
        histories: Indices of the items before, the oldest first, B arrays.
        targets: Index of the item that came next, int64 [B].
    """

    users: Indices
    histories: Sequence[Indices]
    targets: Indices

    def __getitem__(self, rows: slice) -> Holdout:
        """Some of them."""
        return Holdout(self.users[rows], self.histories[rows], self.targets[rows])


@dataclass(frozen=True)
class Sequences:
    """What each user took, in order.

    The last step of each, or of some, is the test. Of some users, the step before is not for
    training either: it selects. Were it so of all, the model would be tested on what came long
    after its training.

    Attributes:
        users: Their ids, U.
        vocabulary: The items that training saw often enough, the most frequent first, N.
        items: Indices of what each user took, U arrays.
        n_held_out: Steps at each user's end that are not for training, int64 [U], 0 to 2.
    """

    users: Sequence[str]
    vocabulary: tuple[str, ...]
    items: Sequence[Indices]
    n_held_out: Indices

    @property
    def train(self) -> list[Indices]:
        """The steps to train on, U arrays."""
        return [
            items[: max(len(items) - n, 0)]
            for items, n in zip(self.items, self.n_held_out, strict=True)
        ]

    @property
    def valid(self) -> Holdout:
        """The step before the last one of the users that select."""
        return self._holdout(2)

    @property
    def test(self) -> Holdout:
        """The last step of the users that test."""
        return self._holdout(1)

    def _holdout(self, n_back: int) -> Holdout:
        lengths = np.array([len(items) for items in self.items])
        users = np.flatnonzero((lengths >= n_back) & (self.n_held_out >= n_back))
        if len(users) > MAX_HOLDOUT_USERS:
            rng = np.random.default_rng(0)
            users = np.sort(rng.choice(users, MAX_HOLDOUT_USERS, replace=False))
        return Holdout(
            users,
            [self.items[user][:-n_back] for user in users.tolist()],
            np.array([self.items[user][-n_back] for user in users.tolist()], dtype=np.int64),
        )


def encode(
    users: pd.Series[Any],
    items: pd.Series[Any],
    *,
    min_count: int,
    valid_share: float = 0.0,
    test_share: float = 1.0,
    seed: int = 0,
) -> Sequences:
    """Group interactions, which come in order, by their users.

    Args:
        users: Who, one for each interaction.
        items: What, missing where there is nothing.
        min_count: Items that training sees less often are out of vocabulary.
        valid_share: Share of the users that select, where all test.
        test_share: Share of the users that test.
        seed: Of who they are.

    Raises:
        DataError: If too little is left to train on.
    """
    known = (items.notna() & users.notna()).to_numpy()
    if not known.all():
        logger.warning("%d rows without a user or an item are left out", (~known).sum())
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
    # Equal counts in their own order: the same data, the same indices.
    frequent.sort(key=lambda code: (-counts[code], tokens[code]))
    if len(frequent) < 2:
        raise DataError(
            f"expected 2 items or more that come {min_count} times or more before the end of "
            f"sequences, got {len(frequent)} in {len(user_ids)} sequences; lower --min-count?"
        )
    index = np.full(len(tokens), OOV_INDEX, dtype=np.int64)
    index[frequent] = np.arange(len(frequent)) + FIRST_TOKEN_INDEX
    return Sequences(
        users=[str(user) for user in user_ids],
        vocabulary=tuple(str(tokens[code]) for code in frequent),
        items=np.split(index[item_codes], ends[:-1]),
        n_held_out=n_held_out,
    )
