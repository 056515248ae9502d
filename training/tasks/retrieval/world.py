"""The default data of the two-tower model: choices from a catalog, with a known ceiling.

Shapes: N items.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit

N_ITEMS = 1_000
# A single file is split 80/10/10, which leaves 30,000 positives for training.
N_POSITIVES = 37_500

# This catalog has a recall@10 of .38 for the oracle and .23 for popularity; the oracle's recall for
# other seeds ranges from .34 to .49.
_ITEM_SEED = 25
_INTERACTION_SEED = 1

_AGES = np.arange(18, 66)
_GENDERS = np.arange(3)
_GENDER_SHARES = (0.1, 0.45, 0.45)

Array = npt.NDArray[Any]


def catalog() -> pd.DataFrame:
    """Return the N items, the most popular first."""
    rng = np.random.default_rng(_ITEM_SEED)
    return pd.DataFrame(
        {
            "item_id": [f"item_{i}" for i in range(N_ITEMS)],
            "item_ctr": rng.beta(2, 18, N_ITEMS).clip(0.005, 0.6).round(5),
            "item_cvr": rng.beta(2, 60, N_ITEMS).clip(0.0005, 0.3).round(5),
            "item_price": rng.lognormal(4, 0.8, N_ITEMS).clip(5, 2000).round(2),
        }
    )


def users() -> pd.DataFrame:
    """Return every combination of user features: each age with each gender."""
    ages, genders = np.meshgrid(_AGES, _GENDERS, indexing="ij")
    return pd.DataFrame({"user_age": ages.ravel(), "user_gender": genders.ravel()})


def item_probabilities() -> tuple[Array, Array]:
    """Compute how likely each user is to choose each item.

    Returns:
        The probability that a user of :func:`users` chooses an item of :func:`catalog`, float64
        [users, N], whose rows sum to 1; and how much the user likes the item regardless of its
        popularity, float64 [users, N].
    """
    items, people = catalog(), users()
    price = _standardized(np.log(items["item_price"]))
    cvr = _standardized(np.log(items["item_cvr"]))
    ctr = _standardized(logit(items["item_ctr"]))
    age = (people["user_age"].to_numpy()[:, None] - 34) / 11
    gender = people["user_gender"].to_numpy()[:, None]
    liking = (
        -3 * (price - 0.9 * np.tanh(age)) ** 2
        + 1.5 * cvr * ((gender == 1) * 1.0 - (gender == 2))
        + ctr * np.cos(age)
    )
    chosen = _popularity() * np.exp(liking)
    return chosen / chosen.sum(axis=1, keepdims=True), liking


def interactions(n: int, seed: int) -> pd.DataFrame:
    """Draw users who are shown items, choose one (label 1) and pass over another (label 0).

    The chance of being shown depends on popularity and the chance of being chosen on liking; their
    product is :func:`item_probabilities`.

    Args:
        n: Number of users; each has two rows.
        seed: Seed of the draw.

    Returns:
        Columns of the user and the item, and ``label``, 2 n rows.
    """
    rng = np.random.default_rng(seed)
    items, people = catalog(), users()
    chosen, liking = item_probabilities()
    passed_over = _popularity() * (1 - np.exp(liking - liking.max()))
    ages = rng.normal(34, 11, n).clip(_AGES[0], _AGES[-1]).round().astype(np.int64)
    genders = rng.choice(_GENDERS, n, p=_GENDER_SHARES)
    user_rows = (ages - _AGES[0]) * len(_GENDERS) + genders
    drawn = np.stack(
        [_draw(rng, chosen, user_rows), _draw(rng, passed_over, user_rows)], axis=1
    )  # [n, 2]
    rows = people.take(user_rows.repeat(2)).reset_index(drop=True)
    shown = items.take(drawn.ravel()).reset_index(drop=True)
    return rows.join(shown).assign(label=np.tile([1, 0], n))


def generate_interactions(path: Path, n: int = N_POSITIVES) -> None:
    """Write a CSV, unless it exists, and its truth to ``*_truth.parquet`` in the same folder.

    The truth is the probability of each item for each user. The CSV appears last, and complete.

    Args:
        path: The CSV to write, such as ``data/two_tower_data.csv``.
        n: Number of positives; each comes with a negative.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    probabilities, _ = item_probabilities()
    truth = users().merge(catalog()[["item_id"]], how="cross")
    truth["probability"] = probabilities.ravel()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".generating-") as scratch:
        rows = Path(scratch) / path.name
        interactions(n, _INTERACTION_SEED).to_csv(rows, index=False)
        truth.to_parquet(Path(scratch) / truth_path(path).name, index=False)
        os.replace(Path(scratch) / truth_path(path).name, truth_path(path))
        os.replace(rows, path)


def truth_path(path: Path) -> Path:
    """Return the path of a generated CSV's truth."""
    return path.with_name(f"{path.stem}_truth.parquet")


def _popularity() -> Array:
    """Return how often each item is shown, up to a factor, float64 [N]."""
    return np.arange(1, N_ITEMS + 1) ** -0.5


def _draw(rng: np.random.Generator, weights: Array, rows: Array) -> Array:
    """Draw a column for each of ``rows``, with the weights of that row, int64 [len(rows)]."""
    cumulative = weights.cumsum(axis=1)
    points = rng.random(len(rows)) * cumulative[rows, -1]
    drawn = np.empty(len(rows), dtype=np.int64)
    for row in np.unique(rows):
        selected = rows == row
        drawn[selected] = np.searchsorted(cumulative[row], points[selected], side="right")
    return drawn


def _standardized(values: "pd.Series[float]") -> Array:
    return ((values - values.mean()) / values.std(ddof=0)).to_numpy()
