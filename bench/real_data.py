"""Public data sets as the CSV files that training reads; their raw files stay where they are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

ML100K_GENRES = (
    *("action", "adventure", "animation", "children", "comedy", "crime", "documentary", "drama"),
    *("fantasy", "film_noir", "horror", "musical", "mystery", "romance", "sci_fi", "thriller"),
    *("war", "western"),
)
ML100K_IDS = ("user_id", "item_id", "gender", "occupation", "zip_area")
ML100K_FEATURES = (*ML100K_IDS, "age", "year", "hour", "day", *ML100K_GENRES)

# Most people have no capital gain, and the amounts of the others cluster: tokens, not a scale.
ADULT_CATEGORIES = (
    *("workclass", "education", "occupation", "relationship", "race", "sex", "native_country"),
    *("capital_gain", "capital_loss"),
)
ADULT_FEATURES = ("age", "fnlwgt", "education_num", "hours_per_week", *ADULT_CATEGORIES)


def write_ml100k(source: Path, folder: Path) -> None:
    """Ratings joined with users and movies, split 80/10/10 at random; label: 4 stars or 5.

    Args:
        source: Holds u.data.gz, u.user.gz and u.item.gz of MovieLens 100K.
        folder: Gets train.csv, valid.csv and test.csv with ``label`` and ML100K_FEATURES.
    """
    ratings = pd.read_csv(
        source / "u.data.gz", sep="\t", names=["user_id", "item_id", "rating", "timestamp"]
    )
    users = pd.read_csv(
        source / "u.user.gz",
        sep="|",
        names=["user_id", "age", "gender", "occupation", "zip_code"],
        dtype={"zip_code": "str"},
    )
    items = pd.read_csv(
        source / "u.item.gz",
        sep="|",
        names=["item_id", "title", "release", "video_release", "url", "unknown", *ML100K_GENRES],
        encoding="latin-1",
    )
    items["year"] = items["release"].str[-4:]
    users["zip_area"] = users["zip_code"].str[:2]
    table = ratings.merge(users, how="left").merge(items, how="left")
    table["label"] = (table["rating"] >= 4).astype(int)
    table["hour"] = table["timestamp"] // 3600 % 24
    table["day"] = table["timestamp"] // 86400
    table = table[["label", *ML100K_FEATURES]].sample(frac=1, random_state=0)
    first_valid, first_test = len(table) * 8 // 10, len(table) * 9 // 10
    table[:first_valid].to_csv(folder / "train.csv", index=False)
    table[first_valid:first_test].to_csv(folder / "valid.csv", index=False)
    table[first_test:].to_csv(folder / "test.csv", index=False)


def write_adult(source: Path, folder: Path) -> None:
    """Census records with two labels, ``income`` (above 50K) and ``never_married``.

    The marital status itself is left out. The official test file is the test split; a tenth of
    the other one, at random, is the validation split.

    Args:
        source: Holds adult.data.gz and adult.test.gz.
        folder: Gets train.csv, valid.csv and test.csv with the labels and ADULT_FEATURES.
    """

    def read(name: str) -> pd.DataFrame:
        table = pd.read_csv(source / name, skipinitialspace=True)
        table["income"] = table["wage_class"].str.startswith(">50K").astype(int)
        table["never_married"] = (table["marital_status"] == "Never-married").astype(int)
        return table[["income", "never_married", *ADULT_FEATURES]]

    table = read("adult.data.gz").sample(frac=1, random_state=0)
    first_valid = len(table) * 9 // 10
    table[:first_valid].to_csv(folder / "train.csv", index=False)
    table[first_valid:].to_csv(folder / "valid.csv", index=False)
    read("adult.test.gz").to_csv(folder / "test.csv", index=False)
