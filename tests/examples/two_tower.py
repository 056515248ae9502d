"""Examples of two_tower, user_tower and item_tower for the shared tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from handlers.models.two_tower import WEIGHTS_FILE, TwoTower
from handlers.models.weights import load_network
from handlers.schema import VOCABULARIES_FILE, FeatureSchema
from tests.examples import Example
from training import artifacts
from training.engine.fit import predict
from training.golden import golden_matrix
from training.tasks.retrieval.world import interactions

POSITIVES = {"train": 8_000, "valid": 1_000, "test": 2_000}
SEGMENTS = ("old", "new", "abroad")
ID_ARGUMENTS = (
    *("--user-cols", "user.id,segment,years,likes"),
    *("--item-cols", "price (EUR),sku,class,shelves"),
    *("--categorical", "user.id,segment,class"),
    *("--multi", "likes:|,shelves:comma"),
    *("--max-values", "2"),
    *("--hash", "likes:30"),
    "--hash-ids",
    *("--item-id-col", "sku"),
    *("--label", "chosen?"),
)


def write_interactions(folder: Path) -> None:
    """Write a small copy of the default world."""
    folder.mkdir()
    for seed, (split, n) in enumerate(POSITIVES.items()):
        interactions(n, seed).to_csv(folder / f"{split}.csv", index=False)


def write_ids(folder: Path) -> None:
    """Write users who mostly choose among 10 of 100 items; some cells are missing.

    The 10 items of a user's group get .9 of the choices. Popularity carries no signal.
    """
    folder.mkdir()
    for seed, (split, n) in enumerate(POSITIVES.items()):
        _id_frame(n, seed).to_csv(folder / f"{split}.csv", index=False)


def _id_frame(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([2, seed])
    user = rng.integers(200, size=n)
    own = rng.integers(10, size=n) * 10 + user % 10
    item = np.where(rng.random(n) < 0.9, own, rng.integers(100, size=n))
    label = rng.random(n) < 0.8
    item = np.where(label, item, rng.integers(100, size=n))
    frame = pd.DataFrame(
        {
            "user.id": user,
            "segment": np.array(SEGMENTS)[user % 3],
            "years": rng.integers(18, 66, n).astype(float),
            "sku": [f"sku-{i}" for i in item],
            "price (EUR)": 5.0 + item % 7,
            "class": np.where(item % 2, "new", "used"),
            "likes": [f"{u % 3}|{u % 5}|{u % 2}"[: u % 6] for u in user.tolist()],
            "shelves": [f"shelf {i % 3},{i % 4}" for i in item.tolist()],
            "chosen?": label.astype(int),
        }
    )
    for column in ("segment", "years", "price (EUR)", "class"):
        frame[column] = frame[column].where(rng.random(n) > 0.05)
    return frame


def tower_rows(tower: str) -> list[dict[str, Any]]:
    """Return request rows of the default features, some of them incomplete or unusual."""
    columns = {"user": ["user_age", "user_gender"], "item": ["item_ctr", "item_cvr", "item_price"]}
    frame = interactions(100, seed=9)[columns[tower]].drop_duplicates().head(24)
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    first = columns[tower][0]
    rows[1][first] = None
    rows[2]["no_such_feature"] = 1.0
    rows[3][first] = 1e300
    del rows[4][columns[tower][1]]
    return rows


def id_rows(tower: str) -> list[dict[str, Any]]:
    """Return request rows of ``write_ids`` with known and unknown ids of both types."""
    columns = {
        "user": ["user.id", "segment", "years", "likes"],
        "item": ["sku", "price (EUR)", "class", "shelves"],
    }
    frame = _id_frame(100, seed=9)[columns[tower]].drop_duplicates().head(24)
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    identity = columns[tower][0]
    rows[0][identity] = "nobody"
    rows[1][identity] = str(rows[1][identity])
    rows[2] = {identity: rows[2][identity]}
    multi = columns[tower][-1]
    for row, value in zip(rows[3:7], ([], [None, 1, "shelf 1"], "2", True), strict=True):
        row[multi] = value
    return rows


def examples(model: str, tower: str) -> list[Example]:
    """Make the examples of a model that serves one of the towers."""

    def offline(folder: Path, rows: list[Any]) -> list[Any]:
        features = artifacts.read_meta(folder)[f"{tower}_features"]
        vocabularies = json.loads((folder / VOCABULARIES_FILE).read_text())
        matrix = golden_matrix(FeatureSchema.from_json(features, vocabularies), rows)
        network = load_network(TwoTower, folder / WEIGHTS_FILE, torch.device("cpu"))
        vectors: list[Any] = predict(getattr(network, tower), torch.from_numpy(matrix)).tolist()
        return vectors

    return [
        Example(
            model=model,
            version="v1",
            write_data=write_interactions,
            arguments=["--epochs", "6", "--batch-size", "128"],
            rows=tower_rows(tower),
            offline=offline,
            reaches={"hr_at_10": 0.32},  # the oracle has .38, popularity .23
        ),
        Example(
            model=model,
            version="ids",
            write_data=write_ids,
            arguments=["--epochs", "12", "--batch-size", "128", *ID_ARGUMENTS],
            rows=id_rows(tower),
            offline=offline,
            reaches={"hr_at_10": 0.85},  # the oracle has .91, popularity .1
        ),
    ]


EXAMPLES = examples("two_tower", "user")
