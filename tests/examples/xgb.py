"""Examples of xgb for the shared tests."""

from pathlib import Path
from typing import Any

import xgboost as xgb

from handlers.models.xgb import BOOSTER_FILE, TreeInputs
from handlers.schema import Matrix
from tests.examples.ranking import ranking_example, with_ids


def predict(folder: Path, matrix: Matrix) -> list[Any]:
    """Predict click probabilities."""
    booster = xgb.Booster(model_file=folder / BOOSTER_FILE)
    probabilities: list[Any] = booster.predict(
        xgb.DMatrix(TreeInputs.load(folder)(matrix))
    ).tolist()
    return probabilities


DEFAULT = ranking_example(
    "xgb",
    *("--epochs", "40", "--min-child-weight", "10"),
    predict=predict,
    reaches={"auc": 0.73},  # the oracle has .754
    libraries=frozenset({"xgboost"}),
)
EXAMPLES = [DEFAULT, with_ids(DEFAULT, reaches={"auc": 0.8})]
