"""Trees rank lists, obey constraints and take any parameter of XGBoost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from archive import catalog, package
from handlers.xgb_handler import XgbHandler
from scripts import evaluate
from serving.archive_file import ArchiveFile
from tests.examples import load_handler, predict, train
from training import artifacts
from training.evaluation import ArchiveOutput
from training.train_xgb import Config, evaluation

RANKS = ["--features", "price,kind", "--categorical", "kind", "--group", "session"]


def sessions(n: int = 600, grades: int = 1) -> pd.DataFrame:
    """Draw sessions of 8 rows whose clicks depend on a middle price and the kind."""
    rng = np.random.default_rng(0)
    session = np.repeat(np.arange(n), 8)
    price, kind = rng.normal(size=8 * n), rng.integers(3, size=8 * n)
    taste = -3 * abs(price) + kind + rng.normal(0, 0.5, 8 * n) + 5 * rng.normal(size=n)[session]
    place = pd.Series(taste).groupby(session).rank(ascending=False)
    return pd.DataFrame(
        {
            "session": session,
            "price": price,
            "kind": np.array(["a", "b", "c"])[kind],
            "label": np.clip(grades + 1 - place, 0, None).astype(int),
        }
    )


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    """Return a function that trains xgb on a table and returns the exit status."""

    def run(table: pd.DataFrame, *flags: str, version: str = "v1") -> int:
        table.to_parquet(tmp_path / "table.parquet")
        places = ["--data-path", str(tmp_path / "table.parquet"), "--version", version]
        return train("xgb", "--artifacts-dir", str(tmp_path), "--epochs", "30", *places, *flags)

    return run


@pytest.mark.parametrize("objective", ["rank:ndcg", "rank:pairwise", "rank:map"])
def test_a_rank_objective_orders_the_rows_of_a_group(
    run: Callable[..., int], tmp_path: Path, objective: str
) -> None:
    table = sessions(grades=1 if objective == "rank:map" else 3)
    assert run(table, *RANKS, "--objective", objective) == 0
    folder = tmp_path / "xgb" / "v1"
    metrics = json.loads((folder / "metrics.json").read_text())["test"]
    for report in metrics.values():
        assert set(report) == {"ndcg_at_10", "auc", "gauc"}
    assert metrics["xgb"]["ndcg_at_10"] > metrics["base rate"]["ndcg_at_10"] + 0.1
    assert metrics["xgb"]["gauc"] > 0.85
    assert not (folder / "calibration.png").exists()
    assert (folder / "loss.png").exists()
    scores = predict(load_handler("xgb", folder), [{"price": p, "kind": "c"} for p in (-3, 0, 3)])
    assert scores[1] > max(scores[0], scores[2])
    assert not all(0 < score < 1 for score in scores)
    assert artifacts.read_meta(folder)["prediction"] == "score"


def test_the_gate_judges_scores_by_their_order(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stump = ["--max-depth", "1", "--epochs", "1"]
    assert run(sessions(), *RANKS, "--objective", "rank:ndcg", *stump) == 0
    assert run(sessions(), *RANKS, version="clicks") == 0
    mar = package.package(
        catalog.get("xgb"), "v1", package.Config(store=tmp_path, artifacts_dir=tmp_path)
    )
    assert ArchiveFile.read(mar).signature.output == {"type": "number", "meaning": "score"}
    places = ["--model-dir", str(tmp_path), "--registry", str(tmp_path / "registry")]
    report = ["--report", str(tmp_path / "report.html"), "--current-version", "clicks"]
    versions = ["--model", "xgb", "--version", "v1"]
    assert evaluate.main([*versions, *places, *report]) == evaluate.FAILED
    assert "FAIL ndcg_at_10: expected >= 0." in capsys.readouterr().out
    assert "Calibration" not in (tmp_path / "report.html").read_text()


def test_scores_of_an_older_version_are_judged_as_probabilities(tmp_path: Path) -> None:
    sessions(20).to_parquet(tmp_path / "table.parquet")
    config = Config(data_path=str(tmp_path / "table.parquet"), features="price")
    output = ArchiveOutput([-5.0, 0.0, 5.0], np.zeros((0, 0), np.float32), {"prediction": "score"})
    results = evaluation(config).results(output)
    assert results[1] == 0.5
    assert 0 < results[0] < results[2] < 1


@pytest.mark.parametrize(
    ("flags", "change", "expected"),
    [
        (["--objective", "rank:ndcg", "--group", ""], {}, "rank:ndcg: expected --group"),
        (["--objective", "rank:map"], {"label": 2}, "column label: expected 0 or 1, got 2"),
        (["--objective", "rank:ndcg"], {"label": 32}, "a whole number from 0 to 31, got 32"),
        (["--objective", "rank:ndcg"], {"label": 0.5}, "a whole number from 0 to 31, got 0.5"),
        (["--objective", "rank:ndcg"], {"session": None}, "column session: 1 of .* rows are empty"),
        ([], {"label": 2}, "column label: expected 0 or 1, got 2"),
        (["--objective", "rank:ndcg", "--positive-weight", "2"], {}, "--positive-weight: expected"),
        (["--param", "max_dpeth=3"], {}, "did you mean max_depth"),
        (["--monotone", "kind:1"], {}, "expected a number, kind is none"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    run: Callable[..., int],
    flags: list[str],
    change: dict[str, Any],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = sessions(20).astype({"label": float, "session": object})
    table["session"] = table["session"].astype(str)
    for column, value in change.items():
        table.loc[3, column] = value
    assert run(table, *RANKS, *flags) == 1
    assert re.search(expected, capsys.readouterr().err)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_constraint_makes_predictions_monotone(
    run: Callable[..., int], tmp_path: Path, direction: int
) -> None:
    rng = np.random.default_rng(0)
    price, ctr = rng.normal(size=2_000), rng.normal(size=2_000)
    label = np.sin(3 * price) + ctr + rng.normal(size=2_000) > 0
    table = pd.DataFrame({"price": price, "ctr": ctr, "label": label.astype(int)})
    flags = ["--features", "ctr,price"]
    assert run(table, *flags, version="free") == 0
    assert run(table, *flags, "--monotone", f"price:{direction}", "--normalize") == 0
    rows = [{"ctr": c, "price": p} for c in (-1, 0, 1) for p in np.linspace(-3, 3, 60).tolist()]
    for version, is_monotone in (("v1", True), ("free", False)):
        scores = predict(load_handler("xgb", tmp_path / "xgb" / version), rows)
        steps = direction * np.diff(np.reshape(scores, (3, 60)), axis=1)
        assert (steps >= 0).all() == is_monotone
        assert steps.any()


def test_parameters_reach_the_booster_and_the_meta_file(
    run: Callable[..., int], tmp_path: Path
) -> None:
    flags = ["--features", "price", "--param", "max_depth=1", "--param", "lambda=3", "eta=0.5"]
    assert run(sessions(), *flags) == 0
    folder = tmp_path / "xgb" / "v1"
    given = artifacts.read_meta(folder)["hyperparameters"]["param"]
    assert given == [["max_depth=1"], ["lambda=3", "eta=0.5"]]
    trees = json.loads((folder / "xgb_model.json").read_text())["learner"]["gradient_booster"]
    assert max(len(tree["left_children"]) for tree in trees["model"]["trees"]) == 3
    assert isinstance(load_handler("xgb", folder), XgbHandler)
