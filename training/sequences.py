"""What the sequence models share: their data, the step that they must predict, the baselines.

Shapes: U users, B of them, N items of the vocabulary. An item's index is its place in the
vocabulary plus 2, after 0 for none and 1 for one that training did not keep.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from handlers.schema import FIRST_TOKEN_INDEX, OOV_INDEX
from training.retrieval import Indices, Scores, expected_ranks, retrieval_report
from training.sources import DataError, read_table, time_order
from training.worlds_sequences import TOKENS_TRUTH_FILE, USERS_TRUTH_FILE

# ItemKNN compares the items of so many users at most; the rest would change little.
MAX_KNN_USERS = 20_000
MAX_HOLDOUT_USERS = 20_000
# Scores in memory at once.
_CHUNK_SCORES = 1 << 22

Reports = dict[str, dict[str, float]]

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


# Scores of the vocabulary's items for each history, [B, N].
Scorer = Callable[[Holdout], Scores]


@dataclass(frozen=True)
class Sequences:
    """What each user took, in order.

    The last step of each is the test. Of some users, the step before is not for training either:
    it selects. Were it so of all, the model would be tested on what came long after its training.

    Attributes:
        users: Their ids, U.
        vocabulary: The items that training saw often enough, the most frequent first, N.
        items: Indices of what each user took, U arrays.
        n_held_out: Steps at each user's end that are not for training, int64 [U], 1 or 2.
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
        """The last step of each user."""
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


def read_log(
    path: Path, categorical: Sequence[str], time_column: str, numeric: Sequence[str] = ()
) -> pd.DataFrame:
    """Read interactions, the oldest first.

    Args:
        path: CSV or Parquet file.
        categorical: Columns of ids or other tokens.
        time_column: Column to sort by; empty for a file that is in order.
        numeric: Columns of numbers.

    Raises:
        DataError: If the file cannot be read so.
    """
    table = read_table(path, numeric, categorical)
    if time_column:
        table = table.iloc[time_order(path, time_column)]
    return table.reset_index(drop=True)


def encode(
    users: pd.Series[Any],
    items: pd.Series[Any],
    *,
    min_count: int,
    valid_share: float = 0.0,
    seed: int = 0,
) -> Sequences:
    """Group interactions, which come in order, by their users.

    Args:
        users: Who, one for each interaction.
        items: What, missing where there is nothing.
        min_count: Items that training sees less often are out of vocabulary.
        valid_share: Share of the users that select.
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
    n_held_out = 1 + (np.random.default_rng(seed).random(len(lengths)) < valid_share)
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


def reports(
    model: str, scorer: Scorer, data: Sequences, exclude_history: bool, world: Path | None = None
) -> Reports:
    """How high the last item of each user ranks among all, beside the baselines and the truth.

    Args:
        model: Name of the model's own report.
        scorer: The model's scores.
        data: The data set.
        exclude_history: Whether the items of a history do not compete.
        world: Folder of the synthetic world that the data is.
    """
    train, n_items = data.train, len(data.vocabulary)
    scorers = {
        model: scorer,
        "popularity": popularity(train, n_items),
        "last item": last_item(train, n_items),
        "item_knn": item_knn(train, n_items),
    }
    if world is not None:
        scorers["oracle"] = oracle(world, data)
    holdout = data.test
    found = {
        name: _report(scorer, holdout, n_items, exclude_history) for name, scorer in scorers.items()
    }
    if "oracle" in found:
        chance = min(1.0, 10 / n_items)
        for report in found.values():
            report["gain"] = (report["hr_at_10"] - chance) / (found["oracle"]["hr_at_10"] - chance)
    return found


def _report(
    scorer: Scorer, holdout: Holdout, n_items: int, exclude_history: bool
) -> dict[str, float]:
    ranks, n_rows = [], max(1, _CHUNK_SCORES // n_items)
    for start in range(0, len(holdout.users), n_rows):
        part = holdout[start : start + n_rows]
        excluded = _one_hot(part.histories, n_items).toarray() > 0
        # An item that training did not keep cannot be found: a miss.
        found = part.targets >= FIRST_TOKEN_INDEX
        targets = np.where(found, part.targets - FIRST_TOKEN_INDEX, 0)
        expected = expected_ranks(scorer(part), targets, excluded if exclude_history else None)
        ranks.append(np.where(found, expected, np.inf))
    return dict(retrieval_report(np.concatenate(ranks)))


def popularity(train: Sequence[Indices], n_items: int) -> Scorer:
    """Items by how often they were taken."""
    counts = np.bincount(np.concatenate(train), minlength=n_items + FIRST_TOKEN_INDEX)
    row = counts[FIRST_TOKEN_INDEX:].astype(np.float64)
    return lambda holdout: np.broadcast_to(row, (len(holdout.users), n_items))


def last_item(train: Sequence[Indices], n_items: int) -> Scorer:
    """Items by how often they came right after the history's last one."""
    flat = np.concatenate([np.append(items, 0) for items in train])
    pairs = np.stack([flat[:-1], flat[1:]]) - FIRST_TOKEN_INDEX
    before, after = pairs[:, (pairs >= 0).all(axis=0)]
    shape = (n_items, n_items)
    counts = sparse.csr_array((np.ones(len(before)), (before, after)), shape=shape)

    def score(holdout: Holdout) -> Scores:
        last = _one_hot([history[-1:] for history in holdout.histories], n_items)
        scores: Scores = (last @ counts).toarray()
        return scores

    return score


def item_knn(train: Sequence[Indices], n_items: int) -> Scorer:
    """Items by the summed cosine of their users with those of the history's items."""
    taken = _one_hot(train[:MAX_KNN_USERS], n_items)
    together = (taken.T @ taken).tocoo()
    norms = np.sqrt(np.maximum(taken.sum(axis=0), 1))
    rows, columns = together.coords
    cosines = np.where(rows == columns, 0, together.data / (norms[rows] * norms[columns]))
    similar = sparse.csr_array((cosines, (rows, columns)), shape=together.shape)

    def score(holdout: Holdout) -> Scores:
        scores: Scores = (_one_hot(holdout.histories, n_items) @ similar).toarray()
        return scores

    return score


def oracle(folder: Path, data: Sequences) -> Scorer:
    """Items by their true probability, for the last step of each user of a synthetic world."""
    items = pd.read_parquet(folder / TOKENS_TRUTH_FILE).set_index("token")
    items = items.loc[list(data.vocabulary)]
    users = pd.read_parquet(folder / USERS_TRUTH_FILE).set_index("user_id")
    probabilities = users.loc[list(data.users)].to_numpy()  # [U, clusters]
    clusters, shares = items["cluster"].to_numpy(np.int64), items["share"].to_numpy(np.float64)

    def score(holdout: Holdout) -> Scores:
        scores: Scores = probabilities[np.ix_(holdout.users, clusters)] * shares
        return scores

    return score


def _one_hot(histories: Sequence[Indices], n_items: int) -> sparse.csr_array[Any]:
    """1 for each known item of each history, [B, N]."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    columns = np.concatenate([*histories, np.empty(0, dtype=np.int64)]) - FIRST_TOKEN_INDEX
    keep = columns >= 0
    shape = (len(histories), n_items)
    counts = sparse.csr_array((np.ones(keep.sum()), (rows[keep], columns[keep])), shape=shape)
    counts.data[:] = 1  # an item that comes twice was summed
    return counts
