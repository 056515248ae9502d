"""Weights of rows and sampled negatives: what they do to the loss, and to predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.examples import train
from tests.examples.ranking import write_impressions
from training import artifacts
from training.tasks.ranking.data import load_ranking_data
from training.tasks.ranking.evaluation import RankingEvaluation
from training.tasks.ranking.multi_task import task_loss
from training.tasks.ranking.weights import WeightFlags, row_weights, sample_negatives
from training.tasks.ranking.world import impressions
from training.train_deepfm import Config, _loss

TARGETS = ["label", "watch_time", "gmv"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small copy of the default world."""
    folder = tmp_path_factory.mktemp("world") / "impressions"
    write_impressions(folder)
    return folder


@pytest.fixture
def trained(world: Path, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Return a function that trains a model on the world and returns its metrics."""

    def run(model: str, *flags: str) -> dict[str, float]:
        places = ["--data-path", str(world), "--artifacts-dir", str(tmp_path), "--version", "v1"]
        few = ["--epochs", "4", "--batch-size", "256", "--lr", "5e-3"]
        few = ["--epochs", "40"] if model == "xgb" else few
        assert train(model, *places, *few, *flags) == 0
        metrics: dict[str, float] = artifacts.read_meta(tmp_path / model / "v1")["metrics"]
        return metrics

    return run


@pytest.mark.parametrize("model", ["deepfm", "xgb"])
def test_predictions_stay_calibrated_when_negatives_are_sampled(
    trained: Callable[..., dict[str, float]], model: str
) -> None:
    metrics = trained(model, "--negative-sampling-rate", "0.1")
    # 1,600 negatives stand for 16,000: 3 % of noise. Without a correction, the ratio is 3.6.
    assert metrics["calibration_ratio"] == pytest.approx(1, abs=0.08)
    assert metrics["auc"] > 0.7


def test_every_task_of_mmoe_stays_calibrated_when_negatives_are_sampled(
    trained: Callable[..., dict[str, float]],
) -> None:
    metrics = trained("mmoe", "--negative-sampling-rate", "0.1", "--no-single-task")
    assert metrics["ctr_calibration_ratio"] == pytest.approx(1, abs=0.08)
    assert metrics["watch_time_calibration_ratio"] == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("model", ["deepfm", "xgb"])
def test_a_weight_of_positives_raises_predictions(
    trained: Callable[..., dict[str, float]], model: str
) -> None:
    assert trained(model, "--positive-weight", "5")["calibration_ratio"] > 1.5


def test_a_weight_of_2_counts_as_much_as_the_row_twice() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": [0.0, 1.0] * 500, "w": [1.0, 1.0, 2.0, 2.0] * 250})
    logits = torch.from_numpy(rng.normal(size=1000).astype(np.float32))
    amounts = torch.from_numpy(rng.exponential(size=1000).astype(np.float32))
    labels = torch.from_numpy(frame["label"].to_numpy(np.float32))
    weights = torch.from_numpy(row_weights(frame, "label", WeightFlags(weight_column="w")))
    twice = torch.from_numpy(np.repeat(np.arange(1000), frame["w"].astype(int)))
    ones = torch.ones(len(twice))

    assert weights.mean().item() == pytest.approx(1)
    assert _loss(logits, labels[:, None], weights).item() == pytest.approx(
        binary_cross_entropy_with_logits(logits[twice], labels[twice]).item()
    )
    for targets, mean in ((labels, 0.0), (amounts, 1.5)):
        assert task_loss(logits, targets, weights, mean).item() == pytest.approx(
            task_loss(logits[twice], targets[twice], ones, mean).item()
        )


def test_the_baselines_count_the_weights(tmp_path: Path) -> None:
    tables = {
        split: impressions(n, n)[0] for split, n in (("train", 900), ("valid", 200), ("test", 201))
    }
    for split, table in tables.items():
        weight = 1 + np.arange(len(table)) % 2
        table.assign(w=weight).to_csv(_file(tmp_path, "weighted", split), index=False)
        table.loc[np.repeat(table.index, weight)].to_csv(
            _file(tmp_path, "repeated", split), index=False
        )
    flags = {"weighted": "w", "repeated": ""}
    base_rates = [
        RankingEvaluation(
            load_ranking_data(
                Config(data_path=str(tmp_path / name), weight_column=column), ["label"]
            ),
            seed=0,
        ).baselines()["base rate"][0]
        for name, column in flags.items()
    ]
    assert base_rates[0] == pytest.approx(base_rates[1])


def _file(folder: Path, name: str, split: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name / f"{split}.csv"


def test_sampling_keeps_every_positive_and_a_seeded_share_of_negatives(world: Path) -> None:
    def load(rate: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        config = Config(data_path=str(world), negative_sampling_rate=rate, seed=seed)
        data = load_ranking_data(config, TARGETS)
        assert len(data.valid) == len(data.test) == 4_000
        assert len(data.train_frame) == 20_000
        assert (data.weights["valid"] == 1).all()
        return data.targets["train"][:, 0], data.weights["train"]

    whole, ones = load(1)
    labels, weights = load(0.25)
    assert (ones == 1).all()
    assert labels.sum() == whole.sum()
    assert len(labels) - labels.sum() == round(0.25 * (len(whole) - whole.sum()))
    assert weights.mean() == pytest.approx(1)
    assert weights[labels == 0].max() / weights[labels == 1].max() == pytest.approx(4, rel=1e-3)
    assert np.average(labels, weights=weights) == pytest.approx(whole.mean())
    again, _ = load(0.25)
    assert (again == labels).all()
    assert (load(0.25, seed=1)[0] != labels).any()


def test_a_negative_remains_however_low_the_rate() -> None:
    frame = pd.DataFrame({"label": [0.0, 1.0, 0.0, 1.0]})
    assert sample_negatives(frame, "label", 1e-6, 0)["label"].tolist().count(0) == 1


def test_weights_multiply() -> None:
    frame = pd.DataFrame({"label": [0.0, 1.0], "w": [1.0, 3.0]})
    weights = row_weights(frame, "label", WeightFlags("w", 0.1, 2.0), n_negatives=4)
    assert (weights[1] / weights[0]).item() == pytest.approx(3 * 2 / 4)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (0, "train split, column w: expected a weight above 0, got 0"),
        (-1.5, "train split, column w: expected a weight above 0, got -1.5"),
        (None, "train split, column w: expected a weight above 0, 1 of 800 rows are empty"),
        ("much", 'column w: expected a number, got "much"'),
    ],
)
def test_a_weight_that_is_not_above_0_is_refused(
    tmp_path: Path, cell: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(impressions(1_000, seed=5)[0].assign(w=1.0).to_json(orient="records"))
    rows[7]["w"] = cell  # in the training split of seed 0
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    places = ["--data-path", str(tmp_path / "table.csv"), "--artifacts-dir", str(tmp_path)]
    assert train("deepfm", *places, "--weight-column", "w") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("column", ["item_ctr", "label"])
def test_a_weight_is_neither_a_feature_nor_a_target(
    column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("deepfm", "--weight-column", column) == 1
    message = f"--weight-column {column}: is also a feature or a target"
    assert message in capsys.readouterr().err


def test_the_weight_column_must_exist(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("deepfm", "--data-path", str(world), "--weight-column", "importance") == 1
    assert "missing column importance" in capsys.readouterr().err
