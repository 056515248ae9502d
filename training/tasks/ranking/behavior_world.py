"""The default data of din: a synthetic world in which clicks depend on the user's last items.

Users look at items of the categories that interest them, and these change. Whether they click on an
item depends on how many of the last items share its category. No column holds the category: a model
has to learn it from the ids. The truth, as in :mod:`training.tasks.ranking.world`, is the click
probability given the features.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from training.folders import writing_folder
from training.tasks.ranking.world import World

# The splits follow each other in time, as in a log.
BEHAVIOR_ROWS: Mapping[str, int] = {"train": 100_000, "valid": 10_000, "test": 50_000}
MAX_HISTORY = 50

Integers = npt.NDArray[np.int64]

_N_CATEGORIES = 20
_N_INTERESTS = 3
_STEP_S = 3 * 3600
_START = 1_790_000_000


def behaviors(
    n: int, seed: int, n_users: int = 2_000, items_per_category: int = 10
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a log of impressions with clicks, oldest first.

    In each step of three hours, every user looks at an item, and gets an impression of another.

    Args:
        n: Number of rows.
        seed: Seed of the draw.
        n_users: Number of users.
        items_per_category: Number of items in each of 20 categories.

    Returns:
        The inputs and the truth, n rows each. The inputs are `user_id`, `item_id`, `item_price`,
        `event_time` in UTC seconds, `history_item_ids`, a list of at most MAX_HISTORY items, the
        latest last, and `label` (0 or 1). The truth has the expectation of the label.
    """
    rng = np.random.default_rng(seed)
    n_items = items_per_category * _N_CATEGORIES
    ids = rng.permutation(n_items) + 1  # by number of the item, whose category is its remainder
    appeal, activity = rng.normal(0, 0.4, n_items), rng.normal(0, 0.4, n_users)
    interests = rng.integers(_N_CATEGORIES, size=(n_users, _N_INTERESTS))
    users = np.arange(n_users)

    def draw(share_of_interests: float) -> Integers:
        """Draw an item for each user, int64 [U]."""
        wanted = interests[users, rng.integers(_N_INTERESTS, size=n_users)]
        other = rng.integers(_N_CATEGORIES, size=n_users)
        category = np.where(rng.random(n_users) < share_of_interests, wanted, other)
        rank = rng.integers(items_per_category, size=n_users)
        return rank * _N_CATEGORIES + category

    n_seen = rng.integers(MAX_HISTORY + 1, size=n_users)
    seen = np.stack([draw(0.8) for _ in range(MAX_HISTORY)], axis=1)  # [U, MAX_HISTORY]
    frames = []
    for step in range(-(-n // n_users)):
        changes = np.flatnonzero(rng.random(n_users) < 0.05)
        interests[changes, rng.integers(_N_INTERESTS, size=len(changes))] = rng.integers(
            _N_CATEGORIES, size=len(changes)
        )
        seen = np.column_stack([seen[:, 1:], draw(0.8)])
        n_seen = np.minimum(n_seen + 1, MAX_HISTORY)
        item, price = draw(0.5), rng.lognormal(4, 0.8, n_users).round(2)
        time = _START + step * _STEP_S + rng.integers(_STEP_S, size=n_users)
        is_seen = np.arange(MAX_HISTORY) >= MAX_HISTORY - n_seen[:, None]
        same = is_seen & (seen % _N_CATEGORIES == item[:, None] % _N_CATEGORIES)
        probability = expit(
            -2.8
            + 1.2 * np.log1p(same.sum(axis=1))
            + appeal[item]
            + activity
            - 0.4 * (np.log(price) - 4)
            + 0.4 * np.cos((time / 3600 % 24 - 20) / 24 * 2 * np.pi)
        )
        frames.append(
            pd.DataFrame(
                {
                    "user_id": users + 1,
                    "item_id": ids[item],
                    "item_price": price,
                    "event_time": time,
                    "history_item_ids": [
                        row[len(row) - k :] for row, k in zip(ids[seen], n_seen, strict=True)
                    ],
                    "label": (rng.random(n_users) < probability).astype(np.int64),
                    "truth": probability,
                }
            ).sort_values("event_time", kind="stable")
        )
    log = pd.concat(frames, ignore_index=True)[:n]
    return log.drop(columns="truth"), log[["truth"]].rename(columns={"truth": "label"})


def generate_behaviors(folder: Path, rows: Mapping[str, int] = BEHAVIOR_ROWS) -> None:
    """Write `{split}.parquet` and `{split}_truth.parquet`, unless the folder exists.

    The folder appears complete or not at all.

    Args:
        folder: The folder to make, such as `data/behaviors`.
        rows: Number of rows by split.

    Raises:
        OSError: If the folder cannot be written.
    """
    if folder.exists():
        return
    inputs, truth = behaviors(sum(rows.values()), seed=1)
    start = 0
    with writing_folder(folder) as finished:
        for split, n in rows.items():
            inputs[start : start + n].to_parquet(finished / f"{split}.parquet", index=False)
            truth[start : start + n].to_parquet(finished / f"{split}_truth.parquet", index=False)
            start += n


BEHAVIORS = World(Path("data/behaviors"), generate_behaviors)
