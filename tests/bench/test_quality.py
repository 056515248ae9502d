"""The quality report: its bars, and the public data that it prepares."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
import tyro

from archive import catalog
from bench import quality
from bench.quality_runs import REAL_RUNS, Bar, Run, default_runs
from bench.real_data import (
    ADULT_FEATURES,
    ML100K_FEATURES,
    ML100K_LISTS,
    write_adult,
    write_ml100k,
)
from handlers.errors import UserError
from tests.examples import training_script

RUNS = [*default_runs(), *REAL_RUNS]


def write(path: Path, *lines: str) -> None:
    """Write compressed lines."""
    with gzip.open(path, "wt", encoding="latin-1") as file:
        file.write("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("bar", "measured", "met"),
    [
        (Bar("auc", 0.75), 0.75, True),
        (Bar("auc", 0.75), 0.7499, False),
        (Bar("auc", 0.98, 1.02), 1.03, False),
        (Bar("auc", 0.70, twin="single task"), 0.797, True),
        (Bar("auc", 0.70, twin="single task"), 0.796, False),
        (Bar("auc", 0.85, twin="single task"), 0.84, False),
        (Bar("auc", twin="single task", margin=0.0), 0.7998, False),
    ],
)
def test_a_bar_is_met_from_its_value_on_and_not_below(bar: Bar, measured: float, met: bool) -> None:
    reports = {"mmoe": {"auc": measured}, "single task": {"auc": 0.7999}, "oracle": {"auc": 0.9}}
    [line] = quality.compare(Run("mmoe", (bar,)), reports, took_s=1)
    assert (line.met, line.baseline, line.oracle) == (met, "0.7999", "0.9000")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.model}-{run.data_name}")
def test_the_training_script_takes_the_flags_of_each_run(run: Run) -> None:
    own = catalog.get(run.model).training[1:]
    config = training_script(run.model).Config
    tyro.cli(config, args=[*own, *run.flags, "--data-path", "somewhere"])


def test_no_adult_feature_reveals_the_marital_status_or_the_wage(tmp_path: Path) -> None:
    names = (
        "age, workclass, fnlwgt, education, education_num, marital_status, occupation, "
        "relationship, race, sex, capital_gain, capital_loss, hours_per_week, native_country, "
        "wage_class"
    )
    single = "39, State, 7, BA, 13, Never-married, Sales, None, White, Male, 0"
    rich = single.replace("Never-married", "Divorced")
    write(
        tmp_path / "adult.data.gz",
        names,
        *[f"{single}, 0, 40, US, <=50K"] * 10,
        *[f"{rich}, 0, 40, US, >50K"] * 10,
    )
    write(tmp_path / "adult.test.gz", names, f"{rich}, 0, 40, US, >50K.")
    write_adult(tmp_path, tmp_path)
    train, valid, test = (pd.read_csv(tmp_path / f"{s}.csv") for s in ("train", "valid", "test"))
    assert list(train.columns) == ["income", "never_married", *ADULT_FEATURES]
    assert (len(train), len(valid), len(test)) == (18, 2, 1)
    assert test[["income", "never_married"]].to_numpy().tolist() == [[1, 0]]
    assert (pd.concat([train, valid])[["income", "never_married"]].sum(axis=1) == 1).all()


def test_ratings_keep_their_order_and_become_likes(tmp_path: Path) -> None:
    write(tmp_path / "u.data.gz", "2\t7\t3\t500", "1\t7\t4\t500", "1\t8\t5\t400")
    write(tmp_path / "u.user.gz", "1|24|M|artist|07030", "2|53|F|other|94043")
    none, two = "|".join("0" * 18), "|".join("11" + "0" * 16)
    write(
        tmp_path / "u.item.gz",
        f"7|Café (1995)|01-Jan-1995||u|0|{two}",
        f"8|Dogs||||0|{none}",
    )
    table = pd.read_csv(write_ml100k(tmp_path, tmp_path), dtype={"zip_area": "str"})
    assert list(table.columns) == ["label", "timestamp", *ML100K_FEATURES, *ML100K_LISTS]
    assert table[["user_id", "item_id", "label"]].to_numpy().tolist() == [
        [2, 7, 0],
        [1, 7, 1],
        [1, 8, 1],
    ]
    assert table["genres"].fillna("").tolist() == ["action|adventure", "action|adventure", ""]
    assert table["history_item_ids"].fillna("").tolist() == ["", 8.0, ""]
    assert table["zip_area"].tolist() == ["94", "07", "07"]
    assert table["year"].fillna(0).tolist() == [1995, 1995, 0]


def test_an_unknown_model_and_absent_data_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main(["--models", "xgb,no_such", "--data", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "error: no bars for no_such; there are for deepfm, " in err
    assert f"error: {tmp_path}/ml100k: no such file or folder" in err


def test_a_training_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run: Run, _: Path | None, engine: str) -> quality.Reports:
        if run.model == "xgb":
            raise UserError("no space left")
        return {run.model: {"auc": 0.7}}

    monkeypatch.setattr(quality, "train", train)
    assert quality.main(["--models", "xgb,deepfm"]) == 1
    output = capsys.readouterr()
    assert output.err == "error: xgb on default: no space left\n"
    assert "missed: default, deepfm: auc 0.7000, expected >= 0.749" in output.out
