"""The gate compares versions with features of different kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from archive import catalog
from archive.gate.judge import GateConfig, held_out, merged_columns, open_archive
from handlers.errors import UserError
from tests.examples import load_handler, predict, train
from training import train_din
from training.train_xgb import Config


def test_the_newer_version_says_how_a_column_is_read() -> None:
    new = Config(features="price,city", multi="tags:;", timestamp="at", hash="city:9,tags:7")
    old = Config(features="age,price", multi="tags:|,likes", timestamp="born,at", categorical="x")
    merged = {flag: ",".join(parts.values()) for flag, parts in merged_columns([new, old]).items()}
    assert (
        merged
        | {
            "features": "price,city,age",
            "multi": "tags:;,likes",
            "timestamp": "at,born",
            "categorical": "x",
            "hash": "city:9,tags:7",
        }
        == merged
    )


def test_histories_are_merged_by_their_column() -> None:
    runs = [train_din.Config(history="seen:|"), train_din.Config(history="seen:comma,viewed")]
    assert merged_columns(runs)["history"] == {"seen": "seen:|", "viewed": "viewed"}


def test_a_text_that_one_version_splits_is_read_as_a_text() -> None:
    new = Config(features="price", multi="tags:|")
    old = Config(features="price,tags", categorical="tags")
    for runs in ([new, old], [old, new]):
        merged = merged_columns(runs)
        assert (list(merged["categorical"]), list(merged["multi"])) == (["tags"], [])


@pytest.mark.parametrize("old", [Config(features="at"), Config(features="at", categorical="at")])
def test_a_time_that_was_something_else_is_refused(old: Config) -> None:
    with pytest.raises(UserError, match=r"at: is .* in the two versions, so that no row"):
        merged_columns([Config(timestamp="at"), old])


def test_versions_with_and_without_lists_and_times_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 2_000
    tag = rng.integers(4, size=n)
    table = pd.DataFrame(
        {
            "price": rng.random(n),
            "tags": [f"t{i}|all" for i in tag.tolist()],
            "likes": [[f"t{i}"] for i in tag.tolist()],
            "at": pd.Timestamp("2026-11-25") + pd.to_timedelta(rng.integers(10**6, size=n), "s"),
            "label": (rng.random(n) < 0.2 + 0.2 * tag).astype(int),
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    places = ["--data-path", str(tmp_path / "t.parquet"), "--artifacts-dir", str(tmp_path)]
    few = ["--epochs", "20", "--features"]
    old = [*few, "price,tags", "--categorical", "tags"]
    new = [*few, "price", "--multi", "tags:|,likes", "--timestamp", "at"]
    assert train("xgb", *places, "--version", "old", *old) == 0
    assert train("xgb", *places, "--version", "new", *new) == 0
    config = GateConfig(
        model="xgb",
        version="new",
        current_version="old",
        model_dir=tmp_path,
        registry=tmp_path / "registry",
    )
    new_archive, old_archive = (
        open_archive(config, version, tmp_path / version) for version in ("new", "old")
    )
    rows = held_out(catalog.get("xgb"), new_archive, old_archive, config).rows()
    assert rows[0].keys() == {"price", "tags", "at", "likes"}
    scores = [
        predict(load_handler("xgb", tmp_path / "xgb" / version), rows) for version in ("new", "old")
    ]
    assert np.corrcoef(scores)[0, 1] > 0.9
