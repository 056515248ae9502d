"""The booster predicts like XGBoost's Python package, and its errors are readable."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import xgboost

from handlers.models.xgb import DenseBooster


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A booster of a few trees over three columns."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(200, 3)).astype(np.float32)
    labels = (matrix[:, 0] + rng.normal(size=200) > 0).astype(np.float32)
    parameters = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1}
    booster = xgboost.train(parameters, xgboost.DMatrix(matrix, labels), num_boost_round=5)
    booster.save_model(tmp_path / "model.json")
    return tmp_path / "model.json"


def test_predictions_are_those_of_the_python_package(path: Path) -> None:
    matrix = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    matrix[::7, 1] = np.nan
    expected = xgboost.Booster(model_file=path).inplace_predict(matrix)
    booster = DenseBooster(path, "cpu")
    predictions = booster(matrix)
    np.testing.assert_array_equal(predictions, expected)
    booster(matrix[:1] + 1)
    np.testing.assert_array_equal(predictions, expected)  # Not the memory of the next prediction.


def test_wrong_number_of_columns_is_refused(path: Path) -> None:
    with pytest.raises(RuntimeError, match="Number of columns in data must equal"):
        DenseBooster(path, "cpu")(np.zeros((2, 4), dtype=np.float32))


def test_file_that_is_not_a_booster_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text("{}")
    with pytest.raises(RuntimeError, match="xgboost: "):
        DenseBooster(path, "cpu")


@pytest.mark.parametrize("installed", [False, True])
def test_missing_library_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    package = importlib.util.find_spec("json") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(FileNotFoundError, match="not installed; run: pip install xgboost"):
        DenseBooster(path, "cpu")
