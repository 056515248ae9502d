"""Every model passes its bar of docs/models.md on the default data, with the default settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from archive import catalog
from tests.examples import model_names, module, train


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder while models train: default data and artifacts go there."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize("model", model_names())
def test_model_passes_its_bars_on_the_default_data(scratch: Path, model: str) -> None:
    bars, trained = module(model).BARS, catalog.get(model).artifacts
    if not (scratch / "artifacts" / trained).exists():  # else another model shares the run
        assert train(model, "--version", "v1", *bars.arguments) == 0
    told = (scratch / "artifacts" / trained / "v1" / "metrics.json").read_text()
    report = json.loads(told)["test"][trained]
    assert {m: report[m] for m, bar in bars.reaches.items() if report[m] < bar} == {}
