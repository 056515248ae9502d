"""The default data of the ranking models: a synthetic world with a known ceiling.

Every row comes with its truth, the expectation of each target given the features. No model can rank
better than the truth does, so the metrics of the truth (the oracle) are the ceiling that reports
compare a model with. The truth goes into separate files, never into the inputs.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from training.folders import writing_folder


class World(NamedTuple):
    """The data of a run whose flags name none.

    Attributes:
        folder: Folder of the data.
        generate: Writes the folder, unless it exists.
    """

    folder: Path
    generate: Callable[[Path], None]


# Enough training rows for an AUC within .002 of the oracle, and enough test rows for a standard
# error of .002.
IMPRESSION_ROWS: Mapping[str, int] = {"train": 200_000, "valid": 20_000, "test": 100_000}
_SEEDS = {"train": 1, "valid": 2, "test": 3}

# Standard deviations of the two latent tastes over the whole world. Those of a sample would make a
# row's expected watch time depend on the other rows.
_CLICK_TASTE_SD = 1.28
_WATCH_TASTE_SD = 0.614


def impressions(n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw item impressions with their outcomes: clicks, watch time, purchases.

    The effect of the price depends on the user's age and gender, which no single column shows, so a
    linear model stays far below the oracle. Watch time and purchases depend on a second taste.

    Args:
        n: Number of rows.
        seed: Seed of the draw.

    Returns:
        The inputs and the truth, n rows each. The inputs are `item_ctr`, `item_cvr`, `item_price`,
        `user_age` in years, `user_gender` (0 unknown, 1 male, 2 female) and the targets: `label`
        (0 or 1), `watch_time` in seconds, `gmv` in the currency of the price. The truth has a
        column for each target: its expectation.
    """
    rng = np.random.default_rng(seed)
    item_ctr = rng.beta(2, 18, n).clip(0.005, 0.6).round(5)
    item_cvr = rng.beta(2, 60, n).clip(0.0005, 0.3).round(5)
    item_price = rng.lognormal(4, 0.8, n).clip(5, 2000).round(2)
    user_age = rng.normal(34, 11, n).clip(18, 65).round()
    user_gender = rng.choice(3, n, p=[0.1, 0.45, 0.45])

    age = (user_age - 34) / 11
    price = (np.log(item_price) - 4) / 0.8
    ctr = logit(item_ctr) + 2.3
    cvr = np.log(item_cvr / 0.03)
    male, female = user_gender == 1, user_gender == 2

    click_taste = (
        0.9 * ctr
        + 0.25 * cvr
        - 0.467 * (price - 0.6 * age) ** 2
        + 0.5 * price * male
        - 0.5 * price * female
        + 0.4 * np.sin(2 * age) * (male | female)
    )
    click_probability = expit(click_taste - 1)
    label = rng.random(n) < click_probability

    watch_taste = 0.6 * np.tanh(price) + 0.5 * np.cos(1.5 * age) + 0.4 * female - 0.4 * male
    log_watch = 2.5 + 0.45 * (
        0.5 * click_taste / _CLICK_TASTE_SD + 0.866 * watch_taste / _WATCH_TASTE_SD
    )
    watch_time = label * np.exp(log_watch + 0.6 * rng.standard_normal(n)).clip(max=600)

    buy_probability = expit(-1.2 + 0.7 * cvr - 0.5 * price + 0.3 * watch_taste)
    bought = rng.random(n) < buy_probability
    gmv = label * bought * item_price * np.exp(0.3 * rng.standard_normal(n) - 0.045)

    inputs = pd.DataFrame(
        {
            "item_ctr": item_ctr,
            "item_cvr": item_cvr,
            "item_price": item_price,
            "user_age": user_age.astype(np.int64),
            "user_gender": user_gender,
            "label": label.astype(np.int64),
            "watch_time": watch_time.round(2),
            "gmv": gmv.round(2),
        }
    )
    truth = pd.DataFrame(
        {
            "label": click_probability,
            # The mean of a lognormal. The cap at 600 s is too rare to matter.
            "watch_time": click_probability * np.exp(log_watch + 0.6**2 / 2),
            "gmv": click_probability * buy_probability * item_price,
        }
    )
    return inputs, truth


def generate_impressions(folder: Path, rows: Mapping[str, int] = IMPRESSION_ROWS) -> None:
    """Write `{split}.csv` and `{split}_truth.parquet`, unless the folder exists.

    The folder appears complete or not at all, so that no run trains on what a killed run left.

    Args:
        folder: The folder to make, such as `data/impressions`.
        rows: Number of rows by split.

    Raises:
        OSError: If the folder cannot be written.
    """
    if folder.exists():
        return
    with writing_folder(folder) as finished:
        for split, n in rows.items():
            inputs, truth = impressions(n, _SEEDS[split])
            inputs.to_csv(finished / f"{split}.csv", index=False)
            truth.to_parquet(finished / f"{split}_truth.parquet", index=False)


IMPRESSIONS = World(Path("data/impressions"), generate_impressions)
