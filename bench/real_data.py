"""Convert public data sets to files that training reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ML100K_GENRES = (
    *("action", "adventure", "animation", "children", "comedy", "crime", "documentary", "drama"),
    *("fantasy", "film_noir", "horror", "musical", "mystery", "romance", "sci_fi", "thriller"),
    *("war", "western"),
)
ML100K_IDS = ("user_id", "item_id", "gender", "occupation", "zip_area")
ML100K_FEATURES = (*ML100K_IDS, "age", "year", *ML100K_GENRES)
ML100K_LISTS = ("genres", "history_item_ids")
SEPARATOR = "|"
MAX_HISTORY = 50

# Capital gains and losses are tokens: most people have none, and the other amounts cluster.
ADULT_CATEGORIES = (
    *("workclass", "education", "occupation", "relationship", "race", "sex", "native_country"),
    *("capital_gain", "capital_loss"),
)
ADULT_FEATURES = ("age", "fnlwgt", "education_num", "hours_per_week", *ADULT_CATEGORIES)


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        name: Name in the report.
        source: Path of the raw file or folder, relative to the folder of all data sets.
        prepare: Converts the source into a file or folder that training reads. Arguments: the
            source and an empty folder for the result. Returns the path, which may be the source.
    """

    name: str
    source: str
    prepare: Callable[[Path, Path], Path]


def write_ml100k(source: Path, folder: Path) -> Path:
    """Convert MovieLens 100K: ratings joined with users and movies.

    Args:
        source: Folder with u.data.gz, u.user.gz and u.item.gz.
        folder: Receives one file, in the order of the source, with ``label`` (1 for 4 or 5 stars),
            ``timestamp``, ML100K_FEATURES and ML100K_LISTS: the names of the movie's genres, and
            the movies that the user rated before, oldest first.
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
    table["genres"] = [
        SEPARATOR.join(name for name, has in zip(ML100K_GENRES, row, strict=True) if has)
        for row in table[list(ML100K_GENRES)].to_numpy()
    ]
    table["history_item_ids"] = _items_before(table).map(
        lambda items: SEPARATOR.join(map(str, items))
    )
    path = folder / "ratings.csv"
    table[["label", "timestamp", *ML100K_FEATURES, *ML100K_LISTS]].to_csv(path, index=False)
    return path


def _items_before(ratings: pd.DataFrame) -> pd.Series[Any]:
    """Return the items that the user of each rating rated at earlier times, oldest first."""
    ordered = ratings.sort_values("timestamp", kind="stable")
    histories = {}
    for _, of_user in ordered.groupby("user_id"):
        items, times = of_user["item_id"].to_list(), of_user["timestamp"].to_numpy()
        n_before = np.searchsorted(times, times)
        for row, n in zip(of_user.index, n_before, strict=True):
            histories[row] = items[max(0, n - MAX_HISTORY) : n]
    return pd.Series(histories).reindex(ratings.index)


def write_adult(source: Path, folder: Path) -> Path:
    """Convert the census records with two labels, ``income`` (above 50K) and ``never_married``.

    Features that reveal a label are left out. The official test file is the test split.

    Args:
        source: Folder with adult.data.gz and adult.test.gz.
        folder: Receives train.csv, valid.csv and test.csv with the labels and ADULT_FEATURES.
    """

    def read(name: str) -> pd.DataFrame:
        table = pd.read_csv(source / name, skipinitialspace=True)
        table["income"] = table["wage_class"].str.startswith(">50K").astype(int)
        table["never_married"] = (table["marital_status"] == "Never-married").astype(int)
        return table[["income", "never_married", *ADULT_FEATURES]]

    return _write_splits(folder, read("adult.data.gz"), read("adult.test.gz"))


def write_banking77(source: Path, folder: Path) -> Path:
    """Convert questions to a bank (``query``) and the names of their intents (``doc``).

    Args:
        source: Folder with train.csv.gz and test.csv.gz.
        folder: Receives train.csv, valid.csv and test.csv.
    """
    names = {"text": "query", "category": "doc"}
    train, test = (
        pd.read_csv(source / f"{split}.csv.gz").rename(columns=names) for split in ("train", "test")
    )
    return _write_splits(folder, train, test)


def _write_splits(folder: Path, train: pd.DataFrame, test: pd.DataFrame) -> Path:
    """Write the splits; a random tenth of the training rows becomes the validation split."""
    train = train.sample(frac=1, random_state=0)
    first_valid = len(train) * 9 // 10
    train[:first_valid].to_csv(folder / "train.csv", index=False)
    train[first_valid:].to_csv(folder / "valid.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    return folder


ML100K = DataSet("ml100k", "ml100k", write_ml100k)
ADULT = DataSet("adult", "adult", write_adult)
BANKING77 = DataSet("banking77", "banking77", write_banking77)
FACEBOOK = DataSet("facebook", "graphs/facebook_combined.txt.gz", lambda source, _: source)
