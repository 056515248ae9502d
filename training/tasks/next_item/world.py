"""Synthetic worlds: interactions of users with items, and texts about topics.

The truth that no model sees, such as the cluster of an item, is written to files of its own.

Shapes: U users, C clusters, L longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from training.folders import writing_folder

SEQUENCES_FILE = "interactions.csv"
CORPUS_FILE = "texts.csv"
USERS_TRUTH_FILE = "users_truth.parquet"
TOKENS_TRUTH_FILE = "tokens_truth.parquet"

N_CLUSTERS = 20
CLUSTER_ITEMS = 50
STOP_WORDS = 100

# Fixes how clusters follow each other; interactions are drawn with a seed of their own.
_WORLD_SEED = 7

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def draw_sequences(
    n_users: int = 6_000, seed: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Draw 12 to 50 interactions for each user, with items from clusters.

    The cluster of the next item depends on that of the last item, on that of the item before it, or
    on the user's age and gender; within a cluster, some items are more popular. Neither popularity
    nor the last item alone can therefore reach the ceiling.

    Args:
        n_users: Number of users.
        seed: Seed of the draw.

    Returns:
        Three tables:

        - interactions, in order within each user: ``user_id``, ``item_id``, ``timestamp`` in
          seconds, ``user_age`` in years, ``user_gender`` 0, 1 or 2;
        - the truth of each user's last interaction: ``user_id``, and in ``cluster_0`` and so on
          the probability of each cluster, given all that came before;
        - the truth of each item: ``token``, its ``cluster``, and its ``share`` of that cluster.
    """
    world = np.random.default_rng(_WORLD_SEED)
    after = world.permutation(N_CLUSTERS), world.permutation(N_CLUSTERS)
    n_items = N_CLUSTERS * CLUSTER_ITEMS
    names = np.array([f"item_{i}" for i in world.permutation(n_items) + 1])
    share = _zipf(CLUSTER_ITEMS)

    rng = np.random.default_rng(seed)
    age = rng.normal(34, 11, n_users).clip(18, 65).round().astype(np.int64)
    gender = rng.choice(3, n_users, p=[0.1, 0.45, 0.45])
    lengths = rng.integers(12, 51, n_users)
    users = np.arange(n_users)
    from_profile = np.full((n_users, N_CLUSTERS), 0.1 / N_CLUSTERS)  # [U, C]
    from_profile[users, (age // 3 + 7 * gender) % N_CLUSTERS] += 0.2

    clusters, last_step = _draw_clusters(from_profile, after, lengths, rng)
    items = clusters * CLUSTER_ITEMS + rng.choice(CLUSTER_ITEMS, clusters.shape, p=share)
    times = 1_700_000_000 + rng.integers(60, 86_400, clusters.shape).cumsum(axis=1)

    exists = np.arange(clusters.shape[1]) < lengths[:, None]
    user = np.repeat(users, lengths)
    ids = np.array([f"user_{i}" for i in users + 1])
    interactions = pd.DataFrame(
        {
            "user_id": ids[user],
            "item_id": names[items[exists]],
            "timestamp": times[exists],
            "user_age": age[user],
            "user_gender": gender[user],
        }
    )
    users_truth = pd.DataFrame(last_step, columns=[f"cluster_{i}" for i in range(N_CLUSTERS)])
    users_truth.insert(0, "user_id", ids)
    items_truth = pd.DataFrame(
        {
            "token": names,
            "cluster": np.repeat(np.arange(N_CLUSTERS), CLUSTER_ITEMS),
            "share": np.tile(share, N_CLUSTERS),
        }
    )
    return interactions, users_truth, items_truth


def _draw_clusters(
    from_profile: Floats, after: tuple[Indices, Indices], lengths: Indices, rng: np.random.Generator
) -> tuple[Indices, Floats]:
    """Draw the cluster of each interaction.

    Args:
        from_profile: Share of each cluster by the user's age and gender, float64 [U, C].
        after: Cluster that each cluster makes likely one step, and two steps later, int64 [C].
        lengths: Number of interactions of each user, int64 [U].
        rng: Random numbers.

    Returns:
        Clusters, int64 [U, L], and their probabilities at each user's last step, float64 [U, C].
    """
    users = np.arange(len(lengths))
    clusters = np.zeros((len(lengths), lengths.max()), dtype=np.int64)
    last_step = np.zeros_like(from_profile)
    for step in range(clusters.shape[1]):
        probabilities = from_profile.copy()
        for ago, next_cluster in enumerate(after, start=1):
            if step >= ago:
                probabilities[users, next_cluster[clusters[:, step - ago]]] += 0.35
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        drawn = probabilities.cumsum(axis=1) > rng.random((len(lengths), 1))
        clusters[:, step] = drawn.argmax(axis=1)
        last_step[lengths == step + 1] = probabilities[lengths == step + 1]
    return clusters, last_step


def draw_corpus(n_texts: int = 6_000, seed: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw texts of 10 to 40 words, each about one topic; half of the words are stop words.

    Args:
        n_texts: Number of texts.
        seed: Seed of the draw.

    Returns:
        The texts (``text``), and the truth of each topic's words (``token``, its ``cluster``).
    """
    topic_words = np.array(
        [[f"topic{c}word{i}" for i in range(CLUSTER_ITEMS)] for c in range(N_CLUSTERS)]
    )
    stop_words = np.array([f"stop{i}" for i in range(STOP_WORDS)])
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 41, n_texts)
    topics = np.repeat(rng.integers(N_CLUSTERS, size=n_texts), lengths)
    n_words = len(topics)
    words = np.where(
        rng.random(n_words) < 0.5,
        rng.choice(stop_words, n_words, p=_zipf(STOP_WORDS)),
        topic_words[topics, rng.choice(CLUSTER_ITEMS, n_words, p=_zipf(CLUSTER_ITEMS))],
    )
    texts = [" ".join(text) for text in np.split(words, lengths.cumsum()[:-1])]
    truth = pd.DataFrame(
        {"token": topic_words.ravel(), "cluster": np.repeat(np.arange(N_CLUSTERS), CLUSTER_ITEMS)}
    )
    return pd.DataFrame({"text": texts}), truth


def generate_sequences(folder: Path, n_users: int = 6_000) -> None:
    """Write the interactions and their truth, unless the folder exists.

    Args:
        folder: Folder to make, such as ``data/sequences``; it appears whole or not at all.
        n_users: Number of users.

    Raises:
        OSError: If the folder cannot be written.
    """
    if folder.exists():
        return
    interactions, users_truth, items_truth = draw_sequences(n_users)
    with writing_folder(folder) as unfinished:
        interactions.to_csv(unfinished / SEQUENCES_FILE, index=False)
        users_truth.to_parquet(unfinished / USERS_TRUTH_FILE, index=False)
        items_truth.to_parquet(unfinished / TOKENS_TRUTH_FILE, index=False)


def generate_corpus(folder: Path, n_texts: int = 6_000) -> None:
    """Write the texts and their truth, unless the folder exists.

    Args:
        folder: Folder to make, such as ``data/corpus``; it appears whole or not at all.
        n_texts: Number of texts.

    Raises:
        OSError: If the folder cannot be written.
    """
    if folder.exists():
        return
    texts, truth = draw_corpus(n_texts)
    with writing_folder(folder) as unfinished:
        texts.to_csv(unfinished / CORPUS_FILE, index=False)
        truth.to_parquet(unfinished / TOKENS_TRUTH_FILE, index=False)


@dataclass(frozen=True)
class World:
    """The data of a run whose flags name none.

    Attributes:
        folder: Folder of the data.
        file: Name of the file to train on in that folder.
        generate: Writes the folder, unless it exists.
    """

    folder: Path
    file: str
    generate: Callable[[Path], None]


INTERACTIONS = World(Path("data/sequences"), SEQUENCES_FILE, generate_sequences)
TEXTS = World(Path("data/corpus"), CORPUS_FILE, generate_corpus)


def _zipf(n: int) -> Floats:
    weights = 1 / np.arange(1, n + 1)
    shares: Floats = weights / weights.sum()
    return shares
