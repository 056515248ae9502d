"""What the tests of training scripts share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.examples import train


@pytest.fixture
def fit(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains a module's ``MODEL`` on a table, for one epoch.

    It returns the artifact folder.
    """
    model: str = request.module.MODEL

    def run(table: pd.DataFrame, *flags: str, version: str = "v1") -> Path:
        path = tmp_path / "table.csv"
        table.to_csv(path, index=False)
        shutil.rmtree(tmp_path / "artifacts" / model / version, ignore_errors=True)
        places = ["--data", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
        assert train(model, "--epochs", "1", *places, "--version", version, *flags) == 0
        return tmp_path / "artifacts" / model / version

    return run
