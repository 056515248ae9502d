"""Examples of mmoe for the shared tests."""

from pathlib import Path
from typing import Any

import torch

from handlers.models.mmoe import WEIGHTS_FILE, MMoE
from handlers.models.weights import load_network
from handlers.schema import Matrix
from tests.examples.ranking import ranking_example
from training.engine import fit

TASKS = ("ctr", "watch_time", "gmv")


def predict(folder: Path, matrix: Matrix) -> list[Any]:
    """Predict the click probability, watch time and sales."""
    network = load_network(MMoE, folder / WEIGHTS_FILE, torch.device("cpu"))
    expected = fit.predict(network, torch.from_numpy(matrix), network.expected).tolist()
    return [dict(zip(TASKS, row, strict=True)) for row in expected]


EXAMPLES = [
    ranking_example(
        "mmoe",
        *("--epochs", "4", "--batch-size", "256", "--lr", "1e-2", "--no-single-task"),
        predict=predict,
        reaches={"ctr_auc": 0.73, "watch_time_spearman": 0.32, "gmv_top_share": 0.3},
    )
]
