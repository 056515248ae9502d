"""Examples of din for the shared tests."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from handlers.models.din import DIN, WEIGHTS_FILE
from handlers.models.weights import load_network
from handlers.schema import Matrix
from tests.examples import Example
from tests.examples.ranking import ROWS, read_schema
from training.engine import fit
from training.folders import writing_folder
from training.golden import golden_matrix
from training.tasks.ranking.behavior_world import behaviors


def predict(folder: Path, matrix: Matrix) -> list[Any]:
    """Predict click probabilities."""
    network = load_network(DIN, folder / WEIGHTS_FILE, torch.device("cpu"))
    probabilities: list[Any] = fit.predict(network, torch.from_numpy(matrix)).sigmoid().tolist()
    return probabilities


def write_behaviors(folder: Path) -> None:
    """Write a small world with few items, whose categories are soon learned; the oracle has .82."""
    inputs, _ = _behaviors(sum(ROWS.values()))
    start = 0
    with writing_folder(folder) as finished:
        for split, n in ROWS.items():
            inputs[start : start + n].to_parquet(finished / f"{split}.parquet", index=False)
            start += n


def _behaviors(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    return behaviors(n, seed=0, n_users=200, items_per_category=1)


def behavior_rows() -> list[dict[str, Any]]:
    """Return request rows with histories of all lengths, some of them unusual."""
    inputs, _ = _behaviors(400)
    rows: list[dict[str, Any]] = json.loads(
        inputs[:40].drop(columns="label").to_json(orient="records")
    )
    rows[0]["history_item_ids"] = []
    del rows[1]["history_item_ids"]
    rows[2]["history_item_ids"] = [None, "nothing", 5, "7", 7.0]
    rows[3]["history_item_ids"] *= 3
    rows[4]["history_item_ids"] = 5
    rows[5]["item_id"] = "nothing"
    rows[6]["event_time"] = "2026-12-31T23:30:00Z"
    rows[7] = {"history_item_ids": rows[7]["history_item_ids"][:3], "item_id": rows[7]["item_id"]}
    # Rows that share a history.
    for row in rows[10:20]:
        row["history_item_ids"] = rows[10]["history_item_ids"]
    return rows


def offline(folder: Path, rows: list[Any]) -> list[Any]:
    """Predict with the code that training predicts with."""
    return predict(folder, golden_matrix(read_schema(folder), rows))


def write_texts(folder: Path) -> None:
    """Write the same world with the histories as text, one file that is split by time."""
    inputs, _ = _behaviors(sum(ROWS.values()))
    histories = inputs["history_item_ids"].map(lambda items: "|".join(map(str, items)))
    folder.mkdir()
    inputs.assign(history_item_ids=histories).to_csv(folder / "log.csv", index=False)


def text_rows() -> list[dict[str, Any]]:
    """Return request rows whose histories are text or lists."""
    rows = behavior_rows()
    for row in rows[8:30:2]:
        row["history_item_ids"] = "|".join(map(str, row["history_item_ids"]))
    return rows


DEFAULT = Example(
    model="din",
    version="v1",
    write_data=write_behaviors,
    arguments=[
        *("--epochs", "3", "--batch-size", "256", "--lr", "1e-2", "--no-without-history"),
    ],
    rows=behavior_rows(),
    offline=offline,
    reaches={"auc": 0.7},  # the linear baseline has .61
)
HASHED = replace(
    DEFAULT,
    version="hashed",
    write_data=write_texts,
    arguments=[
        *DEFAULT.arguments,
        *("--history", "history_item_ids:|", "--max-history", "20", "--time-column", "event_time"),
        *("--hash", "item_id:1000"),
    ],
    rows=text_rows(),
)
EXAMPLES = [DEFAULT, HASHED]
