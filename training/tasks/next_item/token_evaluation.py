"""Evaluate token vectors: by the last token of each sequence, and by their nearest neighbors.

Shapes: B sequences with a held-out token, N tokens of the vocabulary, D embedding dim.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from handlers.models.item2vec import TokenVectors, Vectors
from training.data.files import read_parquet
from training.evaluation import Results
from training.metrics.retrieval import Scores
from training.tasks.next_item.baselines import ScoreItems, uniform_random
from training.tasks.next_item.data import find_data
from training.tasks.next_item.evaluation import NextItemEvaluation
from training.tasks.next_item.split import HeldOut
from training.tasks.next_item.tokens import (
    MODES,
    TokensConfig,
    known_tokens,
    read_log,
    split_log,
    token_row,
)

N_NEIGHBORS = 10


class TokensEvaluation(NextItemEvaluation):
    """Evaluate models that embed a sequence as the mean vector of its tokens.

    Args:
        config: Configuration of the run.
        window: Number of tokens at the end of a history to predict from.

    Raises:
        DataError: If the data cannot be trained on.
    """

    # Not popularity: the vectors are made to find similar tokens, not the next one.
    floor = "random"

    def __init__(self, config: TokensConfig, window: int) -> None:
        world = MODES[config.mode].world
        data = find_data(config, world, config.gen)
        log = read_log(data, config)
        # Only the world of items has an oracle of the next token.
        has_oracle = config.uses_default_data and config.mode == "item2vec"
        super().__init__(
            split_log(log, config), config.exclude_history, world.folder if has_oracle else None
        )
        self.config, self.window = config, window
        self.frame = pd.DataFrame(index=range(len(self.held_out)))
        self.train_frame, self.data_sha256 = log, data.sha256(log)

    def rows(self) -> list[Any]:
        """Return the known tokens at the end of each history, B rows."""
        return [
            token_row(
                self.config.mode, known_tokens(history[-self.window :], self.split.vocabulary)
            )
            for history in self.held_out.histories
        ]

    def baselines(self) -> dict[str, Results]:
        """Rank at random and by the baselines of next-item models."""
        random = uniform_random(len(self.split.vocabulary), self.config.seed)
        return {"random": self.rank(random), **super().baselines()}


def score_next_token(vectors: TokenVectors, out_vectors: Vectors, window: int) -> ScoreItems:
    """Score by the inner product of a token's OUT vector and the history's mean IN vector.

    Args:
        vectors: IN vectors, float32 [N, D].
        out_vectors: OUT vectors, float32 [N, D].
        window: Number of tokens at the end of a history to take the mean of.
    """

    def score(held_out: HeldOut) -> Scores:
        recent = vectors.means([history[-window:] for history in held_out.histories])
        scores: Scores = recent @ out_vectors.T
        return scores

    return score


def same_cluster(vectors: TokenVectors, truth: Path) -> tuple[float, float]:
    """Measure how many of a token's nearest neighbors by cosine belong to its true cluster.

    Args:
        vectors: Vectors of all tokens. A token without a true cluster, such as a stop word, only
            counts as a wrong neighbor.
        truth: Parquet file with ``token`` and ``cluster``.

    Returns:
        The mean share among the 10 nearest neighbors, and the share to expect by chance.
    """
    known = read_parquet(truth).set_index("token")["cluster"]
    clusters = known.reindex(list(vectors.tokens), fill_value=-1).to_numpy()
    unit = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :N_NEIGHBORS]
    is_known, same = clusters >= 0, clusters[:, None] == clusters
    share = np.take_along_axis(same, nearest, axis=1)[is_known].mean()
    chance = (same[is_known].sum(axis=1) - 1).mean() / (len(clusters) - 1)
    return float(share), float(chance)
