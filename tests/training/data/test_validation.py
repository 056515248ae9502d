"""Doubtful data gives a warning before training; good data gives none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.examples import train
from training import artifacts
from training.data.validation import changes, describe, findings, stability_index
from training.tasks.ranking.world import impressions

Spoil = Callable[[pd.DataFrame], pd.DataFrame]


def frame(n_rows: int = 4_000, seed: int = 1) -> pd.DataFrame:
    """Draw a training split with a category."""
    table = impressions(n_rows, seed)[0]
    rng = np.random.default_rng(seed)
    cities = rng.choice(["Berlin", "Tokyo", "Lima"], n_rows, p=[0.5, 0.3, 0.2])
    return table.astype(np.float32).assign(city=pd.Series(cities, dtype="str"))


def warnings(now: pd.DataFrame, before: pd.DataFrame) -> list[str]:
    """Return all warnings, a line each."""
    statistics = describe(now)
    found = [*findings(now, statistics, ["label"]), *changes(now, statistics, describe(before))]
    return [": ".join(finding) for finding in found]


def test_another_sample_of_the_same_data_gives_no_warning() -> None:
    assert warnings(frame(seed=2), frame(seed=1)) == []
    few = frame(300, seed=2).assign(label=[0.0, 1.0] * 150)
    assert warnings(few, frame(seed=1).drop(columns="label")) == []


def test_a_time_moves_on_without_a_warning_and_a_list_counts_by_its_tokens() -> None:
    def with_lists(table: pd.DataFrame, start: float, tags: str) -> pd.DataFrame:
        rng = np.random.default_rng(len(tags))
        lists = ["\x1f".join(rng.permutation(list(tags))) for _ in range(len(table))]
        return table.assign(
            at=start + rng.random(len(table)) * 1e6, tags=pd.Series(lists, dtype="str")
        )

    before = with_lists(frame(seed=1), 1.7e9, "abcdefgh")
    assert warnings(with_lists(frame(seed=2), 1.8e9, "hgfedcba"), before) == []
    [found] = warnings(with_lists(frame(seed=2), 1.8e9, "abcdxyzw"), before)
    assert found.startswith("tags: another distribution: PSI")
    assert set(describe(before).columns["tags"].tokens) == set("abcdefgh")


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (
            lambda t: t.assign(item_ctr=t.item_ctr.where(t.index % 5 == 0)),
            "item_ctr: 80.0% empty cells: at most 50%",
        ),
        (
            lambda t: t.assign(item_ctr=t.item_ctr.mask(t.index % 5 == 0)),
            "item_ctr: 20.0% empty cells: about 0.0%",
        ),
        (lambda t: t.assign(user_age=30.0), "user_age: only 30.0: two values or more"),
        (
            lambda t: t.assign(label=(t.index < 20).astype(np.float32)),
            "label: 20 of 4000 rows are 1: 100 or more",
        ),
        (
            lambda t: pd.concat([t[:1000]] * 4, ignore_index=True),
            "all: 75.0% repeated rows: at most 50%",
        ),
        (
            lambda t: pd.concat([t, t[:1000]], ignore_index=True),
            "all: 20.0% repeated rows: about 0.0%",
        ),
        (
            lambda t: t.assign(item_price=t.item_price.mask(t.index % 50 == 0, -1)),
            r"item_price: 2.0% outside the range: \[5, ",
        ),
        (
            lambda t: t.assign(item_price=t.item_price.clip(20, 60)),
            r"item_price: another distribution: PSI \d",
        ),
        (
            lambda t: t.assign(city=t.city.replace("Tokyo", "Kyoto")),
            r"city: another distribution: PSI \d",
        ),
    ],
)
def test_doubtful_data_gives_a_warning(spoil: Spoil, warning: str) -> None:
    [line] = [line for line in warnings(spoil(frame()), frame(seed=2)) if re.match(warning, line)]
    assert line


def test_the_stability_index_follows_its_definition() -> None:
    before, now = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert stability_index(before, before) == 0
    expected = -0.25 * np.log(0.5) + 0.25 * np.log(1.5)
    assert stability_index(before, now) == pytest.approx(expected)


def test_statistics_survive_json(tmp_path: Path) -> None:
    # 0.1 as float32 is not 0.1; as the bound of a bin, it would move rows to the next one.
    tenths = pd.DataFrame({"x": np.repeat(np.arange(1, 10) / 10, 100).astype(np.float32)})
    statistics = describe(tenths)
    assert json.loads(json.dumps(statistics.columns["x"].bounds)) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    )
    assert statistics.columns["x"].shares[0] == pytest.approx(1 / 9, abs=1e-6)


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., int]:
    """Train a few trees on a table, and return the exit status."""

    def run(table: pd.DataFrame, version: str, *flags: str) -> int:
        path = tmp_path / "table.parquet"
        table.to_parquet(path)
        places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
        return train("xgb", "--epochs", "2", *places, "--version", version, *flags)

    return run


@contextmanager
def meta_of_v1(root: Path) -> Iterator[dict[str, Any]]:
    """Change the meta file of version v1."""
    path = root / "artifacts" / "xgb" / "v1" / "feature_meta.json"
    meta = json.loads(path.read_text())
    yield meta
    path.write_text(json.dumps(meta))


def test_data_is_compared_with_that_of_the_previous_version(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(frame(), "v1") == 0
    assert fit(frame(seed=2), "v2", "--strict") == 0
    assert "warning" not in capsys.readouterr().err
    shifted = frame().assign(item_price=lambda t: t.item_price * 10)
    assert fit(shifted, "v3") == 0
    assert "warnings about the training data, compared with that of version v2" in (
        capsys.readouterr().err
    )
    meta = artifacts.read_meta(tmp_path / "artifacts" / "xgb" / "v3")
    assert meta["statistics"]["columns"]["item_price"]["range"][1] > 2_000


def test_data_is_not_compared_with_generated_data(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(frame(), "v1") == 0
    with meta_of_v1(tmp_path) as meta:
        meta["hyperparameters"]["data_path"] = None  # as if no data had been named
    assert fit(frame().assign(item_price=lambda t: t.item_price * 10), "v2", "--strict") == 0
    assert "warning" not in capsys.readouterr().err


def test_strict_makes_a_warning_an_error(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = frame().assign(user_age=30.0)
    assert fit(constant, "v1", "--strict") == 1
    printed = capsys.readouterr()
    assert "user_age" in printed.err
    assert printed.err.splitlines()[-1] == "error: --strict: 1 warning about the training data"
    assert printed.out == ""
    assert not (tmp_path / "artifacts").exists()


def test_artifacts_without_statistics_are_skipped(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(frame(), "v1") == 0
    with meta_of_v1(tmp_path) as meta:
        del meta["statistics"]
    assert fit(frame().assign(item_price=lambda t: t.item_price * 10), "v2", "--strict") == 0
    assert "warning" not in capsys.readouterr().err
