"""The youtube_dnn examples of the shared tests."""

import json
from pathlib import Path
from typing import Any

import torch

from handlers.models.weights import load_network
from handlers.models.youtube_dnn import WEIGHTS_FILE, YouTubeDNN
from handlers.request_rows import HISTORY_KEY, USER_FEATURES_KEY
from handlers.schema import VOCABULARIES_FILE, FeatureSchema
from tests.examples import Example
from training import artifacts
from training.tasks.next_item.world import draw_sequences, generate_sequences
from training.train_youtube_dnn import embed_rows


def write_interactions(folder: Path) -> None:
    """Write a smaller version of the default data."""
    generate_sequences(folder, n_users=1_500)


def rows() -> list[dict[str, Any]]:
    """Return rows as callers send them, some with gaps and unusual values."""
    log, _, _ = draw_sequences(n_users=20, seed=9)
    sent: list[dict[str, Any]] = [
        {
            USER_FEATURES_KEY: user[["user_age", "user_gender"]].to_dict("records")[0],
            HISTORY_KEY: user["item_id"].tolist(),
        }
        for _, user in log.groupby("user_id")
    ]
    sent[1][HISTORY_KEY] = []
    sent[2][HISTORY_KEY].append("an unknown item")
    sent[3][USER_FEATURES_KEY]["user_age"] = None
    sent[4][USER_FEATURES_KEY]["user_age"] = 1e300
    sent[5][USER_FEATURES_KEY]["no_such_feature"] = 1.0
    del sent[6][USER_FEATURES_KEY]["user_gender"]
    sent[7] = {"user_age": 40.5, "user_gender": 2}
    del sent[8][HISTORY_KEY]
    sent[9][HISTORY_KEY] *= 4  # longer than max_history
    return sent


def embed(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Compute the user vectors of request rows with the training code."""
    vocabularies = json.loads((folder / VOCABULARIES_FILE).read_text())
    schema = FeatureSchema.from_json(artifacts.read_meta(folder)["features"], vocabularies)
    network = load_network(YouTubeDNN, folder / WEIGHTS_FILE, torch.device("cpu"))
    vectors: list[Any] = embed_rows(network, schema, vocabularies[HISTORY_KEY], rows).tolist()
    return vectors


EXAMPLES = [
    Example(
        model="youtube_dnn",
        version="v1",
        write_data=write_interactions,
        arguments=["--epochs", "4"],
        rows=rows(),
        offline=embed,
        reaches={"hr_at_10": 0.15},  # ceiling .41, popularity .11
    )
]
