"""Examples of deepfm for the shared tests."""

from pathlib import Path
from typing import Any

import torch

from handlers.models.deepfm import WEIGHTS_FILE, DeepFM
from handlers.models.weights import load_network
from handlers.schema import Matrix
from tests.examples.ranking import ranking_example, with_ids
from training.engine import fit


def predict(folder: Path, matrix: Matrix) -> list[Any]:
    """Predict click probabilities."""
    network = load_network(DeepFM, folder / WEIGHTS_FILE, torch.device("cpu"))
    probabilities: list[Any] = fit.predict(network, torch.from_numpy(matrix)).sigmoid().tolist()
    return probabilities


DEFAULT = ranking_example(
    "deepfm",
    *("--epochs", "4", "--batch-size", "256", "--lr", "5e-3"),
    predict=predict,
    reaches={"auc": 0.73},  # the oracle has .754
)
EXAMPLES = [DEFAULT, with_ids(DEFAULT, reaches={"auc": 0.8})]
