"""Data, rows and examples that the ranking models share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from handlers.schema import VOCABULARIES_FILE, FeatureSchema, Matrix
from handlers.values import hashed_id
from tests.examples import Example
from training import artifacts
from training.golden import golden_matrix
from training.tasks.ranking.world import generate_impressions, impressions

ROWS: Mapping[str, int] = {"train": 20_000, "valid": 4_000, "test": 4_000}

# Names with spaces, dots and keywords, as real data has them.
ID_FEATURES = ("user_id", "item_id", "price (EUR)", "user.age", "class", "event time")
# Every kind of feature.
ID_ARGUMENTS = (
    *("--features", ",".join(ID_FEATURES)),
    *("--categorical", "user_id,item_id,class"),
    *("--multi", "tags:|,item-tags:comma"),
    *("--max-values", "3"),
    *("--timestamp", "event time,published"),
    *("--timezone", "Asia/Shanghai"),
    *("--hash", "class:100,item-tags:50"),
    "--hash-ids",
    *("--label", "clicked?"),
)


def write_impressions(folder: Path) -> None:
    """Write a small copy of the default world."""
    generate_impressions(folder, ROWS)


def impression_rows() -> list[dict[str, Any]]:
    """Return request rows of the default features, some of them incomplete or unusual."""
    inputs, _ = impressions(40, seed=9)
    inputs = inputs.drop(columns=["label", "watch_time", "gmv"])
    rows: list[dict[str, Any]] = json.loads(inputs.to_json(orient="records"))
    rows[1]["cross_age_x_ctr"] = 4.5
    rows[2]["user_age"] = None
    rows[3]["no_such_feature"] = 1.0
    rows[4]["item_price"] = 1e300
    del rows[5]["user_gender"]
    rows[6] = {"item_ctr": 0.3}
    return rows


def write_ids(folder: Path) -> None:
    """Write clicks that depend on the taste of a user and the appeal of an item; cells are missing.

    Most of the signal is in the ids: the price alone has an AUC of .60, the oracle .83.
    """
    folder.mkdir()
    for seed, (split, n) in enumerate(ROWS.items()):
        _id_frame(n, seed).to_csv(folder / f"{split}.csv", index=False)


def _id_frame(n: int, seed: int) -> pd.DataFrame:
    world = np.random.default_rng(0)
    taste, appeal = world.normal(size=200), world.normal(size=50)
    rng = np.random.default_rng([1, seed])
    user, item = rng.integers(200, size=n), rng.integers(50, size=n)
    price, age = rng.lognormal(2, 0.5, n), rng.integers(18, 66, n).astype(float)
    logit = taste[user] + appeal[item] - np.log(price) + 1.0
    # The tags of an item, and times around the turn of the year, hold no signal of their own.
    tags = [f"{i % 7}|tag {i % 3}|{i % 11}.50|tag {i % 5}"[: i % 24] for i in item.tolist()]
    at = 1_798_000_000 + rng.integers(10**6, size=n)
    frame = pd.DataFrame(
        {
            "user_id": user,
            "item_id": [f"item_{i}" for i in item],
            "price (EUR)": price.round(2),
            "user.age": age,
            "class": np.where(item % 2, "new", "used"),
            "tags": tags,
            "item-tags": [text.replace("|", ",") for text in tags],
            "event time": at,
            "published": pd.to_datetime(at - 86400 * item, unit="s").strftime("%Y-%m-%dT%H:%MZ"),
            "clicked?": (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )
    for column in ("price (EUR)", "user.age", "class", "tags", "published"):
        frame[column] = frame[column].where(rng.random(n) > 0.05)
    return frame


def id_rows() -> list[dict[str, Any]]:
    """Return request rows of ``write_ids`` with known, unknown and missing ids of both types."""
    frame = _id_frame(40, seed=9).drop(columns="clicked?")
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    rows[0]["user_id"] = "nobody"
    rows[1]["item_id"] = 7
    rows[2]["user_id"] = str(rows[2]["user_id"])
    rows[3] |= {"user.age": None, "price (EUR)": None}
    rows[4] = {"item_id": "item_3"}
    rows[5]["tags"] = ["tag 1", None, 3, "nobody's", "tag 2|tag 3"]
    rows[6]["tags"], rows[6]["item-tags"] = 5, ["4,2", True]
    rows[7]["tags"], rows[7]["event time"] = [], None
    rows[8]["event time"] = rows[8]["event time"] * 1000
    rows[9]["event time"] = "2026-12-31 23:30"  # in the time zone of the flag
    rows[10]["user_id"], rows[10]["item_id"] = 10.0, int(hashed_id("item_3"))
    return rows


def ranking_example(
    model: str,
    *arguments: str,
    predict: Callable[[Path, Matrix], list[Any]],
    reaches: Mapping[str, float],
    libraries: frozenset[str] = frozenset(),
) -> Example:
    """Make the example of a ranking model over the default features.

    Args:
        model: Its name in the catalog.
        arguments: Flags of its training script.
        predict: Loads the weights from an artifact folder and scores a matrix, float32 [B, C].
        reaches: Least value that the tiny training must reach, by metric.
        libraries: What the handler imports in addition to what every handler may.
    """

    def offline(folder: Path, rows: list[Any]) -> list[Any]:
        return predict(folder, golden_matrix(read_schema(folder), rows))

    return Example(
        model=model,
        version="v1",
        write_data=write_impressions,
        arguments=arguments,
        rows=impression_rows(),
        offline=offline,
        reaches=reaches,
        libraries=libraries,
    )


def with_ids(example: Example, reaches: Mapping[str, float]) -> Example:
    """Make the example of the same model over ids and columns with unusual names."""
    return replace(
        example,
        version="ids",
        write_data=write_ids,
        arguments=[*example.arguments, *ID_ARGUMENTS],
        rows=id_rows(),
        reaches=reaches,
    )


def read_schema(folder: Path) -> FeatureSchema:
    """Read the schema in an artifact folder."""
    vocabularies = json.loads((folder / VOCABULARIES_FILE).read_text())
    return FeatureSchema.from_json(artifacts.read_meta(folder)["features"], vocabularies)
