"""The default world has the documented ceiling; its files appear complete or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pytest

from training.metrics import ranking as metrics
from training.tasks.ranking.world import IMPRESSION_ROWS, generate_impressions, impressions

World: TypeAlias = tuple[pd.DataFrame, pd.DataFrame]
Metric: TypeAlias = Callable[[metrics.Array, metrics.Array], float]

ROWS = dict.fromkeys(IMPRESSION_ROWS, 50)


@pytest.fixture(scope="module")
def world() -> World:
    return impressions(400_000, seed=0)


@pytest.mark.parametrize(
    ("metric", "target", "expected", "tolerance"),
    [
        (metrics.auc, "label", 0.752, 0.003),
        (metrics.logloss, "label", 0.427, 0.002),
        (metrics.calibration_ratio, "label", 1.0, 0.02),
        (metrics.spearman, "watch_time", 0.341, 0.005),
        (metrics.calibration_ratio, "watch_time", 1.0, 0.02),
        (metrics.top_share, "gmv", 0.349, 0.015),
        (metrics.calibration_ratio, "gmv", 1.0, 0.04),
    ],
)
def test_truth_has_the_known_ceiling(
    world: World, metric: Metric, target: str, expected: float, tolerance: float
) -> None:
    inputs, truth = world
    got = metric(inputs[target].to_numpy(), truth[target].to_numpy())
    assert got == pytest.approx(expected, abs=tolerance)


def test_price_alone_finds_little_of_the_gmv(world: World) -> None:
    inputs, _ = world
    share = metrics.top_share(inputs["gmv"].to_numpy(), inputs["item_price"].to_numpy())
    assert share == pytest.approx(0.12, abs=0.015)


def test_inputs_stay_in_their_ranges(world: World) -> None:
    inputs, _ = world
    assert inputs["label"].mean() == pytest.approx(0.195, abs=0.003)
    assert inputs["item_ctr"].between(0.005, 0.6).all()
    assert inputs["item_cvr"].between(0.0005, 0.3).all()
    assert inputs["item_price"].between(5, 2000).all()
    assert inputs["user_age"].between(18, 65).all()
    assert sorted(inputs["user_gender"].unique()) == [0, 1, 2]
    assert set(inputs["label"].unique()) == {0, 1}
    assert (inputs.loc[inputs["label"] == 0, ["watch_time", "gmv"]] == 0).all(axis=None)


def test_seed_determines_the_rows() -> None:
    inputs, truth = impressions(100, seed=5)
    again, truth_again = impressions(100, seed=5)
    pd.testing.assert_frame_equal(inputs, again)
    pd.testing.assert_frame_equal(truth, truth_again)
    other, _ = impressions(100, seed=6)
    assert not np.isin(inputs["item_price"], other["item_price"]).all()


def test_generated_files_separate_the_inputs_from_the_truth(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "impressions"
    generate_impressions(folder, ROWS)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("test.csv", "test_truth.parquet", "train.csv", "train_truth.parquet"),
        *("valid.csv", "valid_truth.parquet"),
    ]
    train, valid = (pd.read_csv(folder / f"{split}.csv") for split in ("train", "valid"))
    assert train.columns.tolist() == [
        *("item_ctr", "item_cvr", "item_price", "user_age", "user_gender"),
        *("label", "watch_time", "gmv"),
    ]
    assert len(train) == len(pd.read_parquet(folder / "train_truth.parquet")) == 50
    assert not train.equals(valid)


def test_generation_leaves_a_finished_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "impressions"
    generate_impressions(folder, ROWS)
    before = (folder / "train.csv").stat()
    generate_impressions(folder, ROWS)
    assert (folder / "train.csv").stat() == before


def test_killed_generation_leaves_no_partial_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "impressions"

    def fail_at_the_second_split(n: int, seed: int) -> World:
        if seed == 2:
            raise KeyboardInterrupt
        return impressions(n, seed)

    monkeypatch.setattr("training.tasks.ranking.world.impressions", fail_at_the_second_split)
    with pytest.raises(KeyboardInterrupt):
        generate_impressions(folder, ROWS)
    assert list(tmp_path.iterdir()) == []
