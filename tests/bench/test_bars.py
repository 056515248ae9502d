"""Every training run reaches the bars of its model's card on the default data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from archive import catalog
from tests.examples import model_names, train

TRAINED = [name for name in model_names() if catalog.get(name).has_own_run]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder during training: default data and artifacts are written to it."""
    folder = tmp_path_factory.mktemp("quality")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_training_run_reaches_its_bars_on_the_default_data(scratch: Path, name: str) -> None:
    card = catalog.get(name).card
    assert train(name, "--version", "v1", *card.quick_flags.split()) == 0
    reports = json.loads((scratch / "artifacts" / name / "v1" / "metrics.json").read_text())
    metrics = reports["test"][name]
    assert {m: metrics[m] for m, bar in card.bars.items() if metrics[m] < bar} == {}
