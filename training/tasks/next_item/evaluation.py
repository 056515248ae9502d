"""What sequence models are judged on, and their baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from handlers.schema import FIRST_TOKEN_INDEX
from training.data.files import read_parquet
from training.evaluation import ALL, HIT_RATE_RATIO, ArchiveOutput, Evaluation, Results, Rows
from training.metrics.retrieval import Indices, Ranks, Scores, expected_ranks, retrieval_report
from training.tasks.next_item.data import Holdout, Sequences
from training.tasks.next_item.world import TOKENS_TRUTH_FILE, USERS_TRUTH_FILE

# ItemKNN compares the items of so many users at most; the rest would change little.
MAX_KNN_USERS = 20_000


# Scores in memory at once.
_CHUNK_SCORES = 1 << 22


# Scores of the vocabulary's items for each history, [B, N].
Scorer = Callable[[Holdout], Scores]


class SequencesEvaluation(Evaluation):
    """Results are the ranks of the last items of sequences among all, [R], one for each.

    An item that training did not keep cannot be found: its rank is infinite.

    Args:
        data: The data set.
        exclude_history: Whether the items of a history do not compete.
        world: Folder of the synthetic world that the data is.
    """

    primary = "hr_at_10"
    min_ratio: Mapping[str, float] = {"hr_at_10": HIT_RATE_RATIO}

    def __init__(self, data: Sequences, exclude_history: bool, world: Path | None = None) -> None:
        self.sequences, self.exclude_history, self.world = data, exclude_history, world
        self.holdout = data.test
        self.chance = min(1.0, 10 / len(data.vocabulary))

    def items(self) -> list[Any]:
        """The vocabulary."""
        return list(self.sequences.vocabulary)

    def results(self, output: ArchiveOutput) -> Results:
        """Ranks by inner product; items that the archive does not know come last."""
        vectors = np.array(output.predictions, dtype=np.float32)
        items = np.nan_to_num(output.item_vectors)
        known = ~np.isnan(output.item_vectors).any(axis=1)
        row = np.zeros(len(self.sequences.users), dtype=np.int64)
        row[self.holdout.users] = np.arange(len(self.holdout.users))
        return self.rank(lambda part: np.where(known, vectors[row[part.users]] @ items.T, -np.inf))

    def rank(self, scorer: Scorer) -> Ranks:
        """Ranks of the last items by the scores of all."""
        ranks, n_items = [], len(self.sequences.vocabulary)
        n_rows = max(1, _CHUNK_SCORES // n_items)
        for start in range(0, len(self.holdout.users), n_rows):
            part = self.holdout[start : start + n_rows]
            excluded = _one_hot(part.histories, n_items).toarray() > 0
            found = part.targets >= FIRST_TOKEN_INDEX
            targets = np.where(found, part.targets - FIRST_TOKEN_INDEX, 0)
            expected = expected_ranks(
                scorer(part), targets, excluded if self.exclude_history else None
            )
            ranks.append(np.where(found, expected, np.inf))
        return np.concatenate(ranks)

    def baselines(self) -> dict[str, Results]:
        """Popularity, the last item's successors, ItemKNN and, on synthetic data, the truth."""
        train, n_items = self.sequences.train, len(self.sequences.vocabulary)
        scorers = {
            "popularity": popularity(train, n_items),
            "last item": last_item(train, n_items),
            "item_knn": item_knn(train, n_items),
        }
        if self.world is not None:
            scorers["oracle"] = oracle(self.world, self.sequences)
        return {name: self.rank(scorer) for name, scorer in scorers.items()}

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Hit rate, NDCG and MRR."""
        return retrieval_report(results[rows])

    def ranks(self, results: Results) -> Results | None:
        """The results themselves."""
        return results


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
    items = read_parquet(folder / TOKENS_TRUTH_FILE).set_index("token")
    items = items.loc[list(data.vocabulary)]
    users = read_parquet(folder / USERS_TRUTH_FILE).set_index("user_id")
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
