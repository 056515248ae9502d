"""Evaluate next-item models on the held-out item of each user.

Shapes: B users with a held-out item, N items of the vocabulary, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlers.feature import FIRST_TOKEN_INDEX
from training.evaluation import ALL, HIT_RATE_RATIO, ArchiveOutput, Evaluation, Results, Rows
from training.metrics.retrieval import Ranks, expected_ranks, retrieval_report
from training.tasks.next_item.baselines import (
    ScoreItems,
    item_knn,
    last_item,
    multi_hot,
    oracle,
    popularity,
)
from training.tasks.next_item.data import NextItemConfig, load
from training.tasks.next_item.rows import history_rows
from training.tasks.next_item.split import LeaveOneOutSplit
from training.tasks.next_item.world import INTERACTIONS

# Number of scores in memory at a time.
_CHUNK_SCORES = 1 << 22


class NextItemEvaluation(Evaluation):
    """Ranks of the held-out items among all items, [B].

    The rank of an item that is out of vocabulary is infinite: no model can find it.

    Args:
        split: The sequences.
        exclude_history: Whether the items of a history are left out of its ranking.
        world: Folder of the synthetic world, if the data is one: its oracle becomes a baseline.
    """

    primary = "hr_at_10"
    min_ratio: Mapping[str, float] = {"hr_at_10": HIT_RATE_RATIO}

    def __init__(
        self, split: LeaveOneOutSplit, exclude_history: bool, world: Path | None = None
    ) -> None:
        self.split, self.exclude_history, self.world = split, exclude_history, world
        self.held_out = split.test
        self.chance = min(1.0, 10 / len(split.vocabulary))

    def items(self) -> list[Any]:
        """Return the vocabulary."""
        return list(self.split.vocabulary)

    def results(self, output: ArchiveOutput) -> Results:
        """Rank by inner product; items that the archive does not know come last."""
        vectors = np.array(output.predictions, dtype=np.float32)
        items = np.nan_to_num(output.item_vectors)
        known = ~np.isnan(output.item_vectors).any(axis=1)
        row = np.zeros(len(self.split.users), dtype=np.int64)
        row[self.held_out.users] = np.arange(len(self.held_out))
        return self.rank(lambda part: np.where(known, vectors[row[part.users]] @ items.T, -np.inf))

    def rank(self, score_items: ScoreItems) -> Ranks:
        """Rank each held-out item by the scores of all items, float64 [B]."""
        ranks, n_items = [], len(self.split.vocabulary)
        for part in self.held_out.chunks(max(1, _CHUNK_SCORES // n_items)):
            excluded = multi_hot(part.histories, n_items).toarray() > 0
            known = part.targets >= FIRST_TOKEN_INDEX
            targets = np.where(known, part.targets - FIRST_TOKEN_INDEX, 0)
            expected = expected_ranks(
                score_items(part), targets, excluded if self.exclude_history else None
            )
            ranks.append(np.where(known, expected, np.inf))
        return np.concatenate(ranks)

    def baselines(self) -> dict[str, Results]:
        """Rank by popularity, the last item, ItemKNN and, on the synthetic world, the oracle."""
        train, n_items = self.split.train, len(self.split.vocabulary)
        baselines = {
            "popularity": popularity(train, n_items),
            "last item": last_item(train, n_items),
            "item_knn": item_knn(train, n_items),
        }
        if self.world is not None:
            baselines["oracle"] = oracle(self.world, self.split)
        return {name: self.rank(score_items) for name, score_items in baselines.items()}

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """Compute hit rate, NDCG and MRR."""
        return retrieval_report(results[rows])

    def ranks(self, results: Results) -> Results | None:
        """Return the results, which are ranks."""
        return results


class HistoryEvaluation(NextItemEvaluation):
    """Evaluate models that embed a user by features and a history.

    Args:
        config: Configuration of the run.

    Raises:
        DataError: If the data cannot be trained on.
    """

    floor = "popularity"

    def __init__(self, config: NextItemConfig) -> None:
        self.data = load(config)
        world = INTERACTIONS.folder if config.uses_default_data else None
        super().__init__(self.data.split, config.exclude_history, world)
        self.frame = self.data.user_frame.iloc[self.held_out.users]
        self.train_frame, self.data_sha256 = self.data.interactions, self.data.sha256

    def rows(self) -> list[Any]:
        """Return features and histories, B rows."""
        return history_rows(
            self.data.schema, self.frame, self.held_out.histories, self.split.vocabulary
        )
