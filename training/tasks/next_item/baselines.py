"""Simple ways to score the next item, and the oracle of the synthetic world.

Shapes: B users with a held-out item, N items of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from handlers.feature import FIRST_TOKEN_INDEX, MISSING_INDEX
from training.data.files import read_parquet
from training.metrics.retrieval import Indices, Scores
from training.tasks.next_item.split import HeldOut, LeaveOneOutSplit
from training.tasks.next_item.world import TOKENS_TRUTH_FILE, USERS_TRUTH_FILE

# More users would hardly change the similarities of ItemKNN.
MAX_KNN_USERS = 20_000

# Scores every item of the vocabulary for each user, [B, N].
ScoreItems = Callable[[HeldOut], Scores]


def uniform_random(n_items: int, seed: int) -> ScoreItems:
    """Score items at random."""
    rng = np.random.default_rng(seed)
    return lambda held_out: rng.random((len(held_out), n_items))


def popularity(train: Sequence[Indices], n_items: int) -> ScoreItems:
    """Score items by their number of interactions."""
    counts = np.bincount(np.concatenate(train), minlength=n_items + FIRST_TOKEN_INDEX)
    row = counts[FIRST_TOKEN_INDEX:].astype(np.float64)
    return lambda held_out: np.broadcast_to(row, (len(held_out), n_items))


def last_item(train: Sequence[Indices], n_items: int) -> ScoreItems:
    """Score items by how often they follow the last item of the history."""
    # One padding index ends each sequence, so that no pair spans two users.
    flat = np.concatenate([np.append(items, MISSING_INDEX) for items in train])
    pairs = np.stack([flat[:-1], flat[1:]]) - FIRST_TOKEN_INDEX
    before, after = pairs[:, (pairs >= 0).all(axis=0)]
    shape = (n_items, n_items)
    counts = sparse.csr_array((np.ones(len(before)), (before, after)), shape=shape)

    def score(held_out: HeldOut) -> Scores:
        last = multi_hot([history[-1:] for history in held_out.histories], n_items)
        scores: Scores = (last @ counts).toarray()
        return scores

    return score


def item_knn(train: Sequence[Indices], n_items: int) -> ScoreItems:
    """Score items by their summed cosine similarity to the items of the history.

    An item is represented by the set of its users.
    """
    interactions = multi_hot(train[:MAX_KNN_USERS], n_items)  # [U, N]
    together = (interactions.T @ interactions).tocoo()
    norms = np.sqrt(np.maximum(interactions.sum(axis=0), 1))
    rows, columns = together.coords
    cosines = np.where(rows == columns, 0, together.data / (norms[rows] * norms[columns]))
    similar = sparse.csr_array((cosines, (rows, columns)), shape=together.shape)

    def score(held_out: HeldOut) -> Scores:
        scores: Scores = (multi_hot(held_out.histories, n_items) @ similar).toarray()
        return scores

    return score


def oracle(folder: Path, split: LeaveOneOutSplit) -> ScoreItems:
    """Score items by their true probability as the last item of each user.

    Args:
        folder: Folder of the synthetic world.
        split: The world's sequences.
    """
    items = read_parquet(folder / TOKENS_TRUTH_FILE).set_index("token")
    items = items.loc[list(split.vocabulary)]
    users = read_parquet(folder / USERS_TRUTH_FILE).set_index("user_id")
    probabilities = users.loc[list(split.users)].to_numpy()  # [U, clusters]
    clusters, shares = items["cluster"].to_numpy(np.int64), items["share"].to_numpy(np.float64)

    def score(held_out: HeldOut) -> Scores:
        scores: Scores = probabilities[np.ix_(held_out.users, clusters)] * shares
        return scores

    return score


def multi_hot(histories: Sequence[Indices], n_items: int) -> sparse.csr_array[Any]:
    """Mark the items of each history with 1, float64 [B, N]; unknown items are left out."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    columns = np.concatenate([*histories, np.empty(0, dtype=np.int64)]) - FIRST_TOKEN_INDEX
    keep = columns >= 0
    shape = (len(histories), n_items)
    marks = sparse.csr_array((np.ones(keep.sum()), (rows[keep], columns[keep])), shape=shape)
    marks.data[:] = 1  # scipy adds up an item that occurs twice
    return marks
