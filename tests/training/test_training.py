"""Training commands accept their flags and data, write artifacts, and refuse what cannot work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, get_origin, get_type_hints

import numpy as np
import pandas as pd
import pydantic
import pytest
import tyro

import scripts.train
from archive import catalog
from handlers.models.xgb import SCALER_FILE
from handlers.xgb_handler import XgbHandler
from serving.testing import ROOT
from tests.examples import Example, load_handler, module, predict, train, training_script
from training import artifacts, train_xgb
from training.run import load_script
from training.tasks.ranking.world import impressions

FAST = {
    "xgb": ["--epochs", "5"],
    "deepfm": ["--epochs", "1", "--batch-size", "512"],
    "mmoe": ["--epochs", "1", "--batch-size", "512", "--no-single-task"],
}
RANKERS = sorted(FAST)


@pytest.fixture
def data() -> pd.DataFrame:
    """Draw a small table of the default data."""
    return impressions(2_000, seed=5)[0]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Path]:
    """Train a model on a table, and return the artifact folder."""

    def run(model: str, table: pd.DataFrame, *flags: str, version: str = "v1") -> Path:
        path = tmp_path / "table.parquet"
        table.to_parquet(path)
        shutil.rmtree(tmp_path / "artifacts" / model / version, ignore_errors=True)
        places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
        assert train(model, *FAST[model], *places, "--version", version, *flags) == 0
        return tmp_path / "artifacts" / model / version

    return run


# Checked where they are used.
NO_BOUNDS = ("doris_port", "num_workers")


def weights(folder: Path) -> dict[str, bytes]:
    """Return the weights files."""
    return {p.name: p.read_bytes() for p in folder.glob("*_model.*")}


@pytest.mark.parametrize("model", RANKERS)
def test_the_same_data_and_seed_give_the_same_weights(
    fit: Callable[..., Path], data: pd.DataFrame, model: str
) -> None:
    first = weights(fit(model, data))
    again = weights(fit(model, data))
    assert len(first) == 1
    assert again == first
    assert weights(fit(model, data, "--seed", "1")) != first
    assert weights(fit(model, data.iloc[:-1])) != first


@pytest.mark.parametrize("model", RANKERS)
def test_a_run_writes_the_files_that_packaging_and_people_need(
    fit: Callable[..., Path], data: pd.DataFrame, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(model, data)
    files = {path.name for path in folder.iterdir()}
    assert {"golden.json", "metrics.json", "loss.png", "roc.png", "calibration.png"} < files
    meta = artifacts.read_meta(folder)
    assert meta["model_version"] == "v1"
    assert meta["feature_count"] == len(meta["feature_columns"]) == 7
    assert meta["hyperparameters"]["epochs"] == int(FAST[model][1])
    assert len(meta["data_sha256"]) == 64
    out = capsys.readouterr().out
    assert f"artifacts: {folder}" in out
    assert "auc" in out


def test_columns_may_have_any_names(fit: Callable[..., Path], data: pd.DataFrame) -> None:
    renamed = {"item_ctr": "click rate", "item_price": "price.eur", "user_age": "class"}
    table = data.rename(columns=renamed | {"label": "data"})
    names = ",".join(renamed.values())
    for model in ("xgb", "deepfm"):
        custom = fit(model, table, "--features", names, "--label", "data", version="custom")
        default = fit(model, data, "--features", ",".join(renamed))
        row = {"item_ctr": 0.1, "item_price": 50.0, "user_age": 30.0}
        assert predict(
            load_handler(model, custom), [{renamed[k]: v for k, v in row.items()}]
        ) == predict(load_handler(model, default), [row])
    assert artifacts.read_meta(custom)["label_column"] == "data"


def test_flags_name_the_targets_and_tasks_of_mmoe(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    table = data.rename(columns={"label": "clicked", "gmv": "sales"})
    flags = ["--targets", "clicked,sales", "--tasks", "click,sale", "--task-weights", "1", "0.5"]
    folder = fit("mmoe", table, *flags)
    [prediction] = predict(load_handler("mmoe", folder), [{}])
    assert list(prediction) == ["click", "sale"]


@pytest.mark.parametrize("model", ["xgb", "deepfm"])
def test_given_cross_features_equal_computed_ones(
    fit: Callable[..., Path], data: pd.DataFrame, model: str
) -> None:
    single = data.astype(np.float32)
    given = data.assign(
        cross_age_x_ctr=single.user_age * single.item_ctr,
        cross_gender_x_price=single.user_gender * single.item_price,
    )
    assert weights(fit(model, given)) == weights(fit(model, data))


@pytest.mark.parametrize(
    ("model", "metric"), [("deepfm", "normalized_entropy"), ("mmoe", "ctr_normalized_entropy")]
)
def test_a_small_table_is_enough_to_beat_the_base_rate(
    tmp_path: Path, data: pd.DataFrame, model: str, metric: str
) -> None:
    data.to_csv(tmp_path / "table.csv", index=False)
    places = ["--data-path", str(tmp_path / "table.csv"), "--artifacts-dir", str(tmp_path)]
    single = ["--no-single-task"] if model == "mmoe" else []
    assert train(model, *places, *single, "--version", "v1") == 0
    metrics = json.loads((tmp_path / model / "v1" / "metrics.json").read_text())
    assert metrics["test"][model][metric] < 0.98


def test_trees_split_a_small_table_of_few_clicks(tmp_path: Path, data: pd.DataFrame) -> None:
    data["label"] = (data["item_ctr"] > data["item_ctr"].quantile(0.97)).astype(int)
    data[:1000].to_csv(tmp_path / "table.csv", index=False)
    places = ["--data-path", str(tmp_path / "table.csv"), "--artifacts-dir", str(tmp_path)]
    assert train("xgb", *places, "--version", "v1") == 0
    metrics = json.loads((tmp_path / "xgb" / "v1" / "metrics.json").read_text())
    assert metrics["test"]["xgb"]["auc"] > 0.95


@pytest.mark.parametrize("model", RANKERS)
def test_a_model_learns_what_a_missing_cell_means(
    fit: Callable[..., Path], data: pd.DataFrame, model: str
) -> None:
    gone = np.arange(len(data)) % 3 == 0
    table = data.assign(item_ctr=data.item_ctr.mask(gone), label=data.label.where(~gone, 0))
    thorough = [] if model == "xgb" else ["--batch-size", "64", "--lr", "1e-2"]
    handler = load_handler(model, fit(model, table, "--epochs", "10", *thorough))
    defaults = {f["name"]: f["default"] for f in handler.meta["features"]}
    assert defaults["item_ctr"] is None
    assert defaults["item_price"] == 0.0

    row = {"item_cvr": 0.03, "item_price": 55.0, "user_age": 34, "user_gender": 1}
    rows = [row, {**row, "item_ctr": None}, {**row, "item_ctr": 1e300}, {**row, "item_ctr": 0.1}]
    predictions = predict(handler, rows)
    clicks = [row["ctr"] for row in predictions] if model == "mmoe" else predictions
    assert clicks[:3] == pytest.approx([clicks[0]] * 3, rel=1e-5)
    assert clicks[0] < clicks[3] / 2  # no row without a CTR was clicked


@pytest.mark.parametrize(
    ("features", "n", "n_cities", "rate"),
    [
        ("city", 300, 2, 0.5),
        ("city,color", 1_000, 20, 0.5),
        ("city,color", 5_000, 2, 0.1),
    ],
)
@pytest.mark.parametrize("model", RANKERS)
def test_an_unknown_category_scores_near_the_base_rate(
    fit: Callable[..., Path], model: str, features: str, n: int, n_cities: int, rate: float
) -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(n) < rate).astype(int)
    table = pd.DataFrame(
        {
            "city": label + 2 * rng.integers(n_cities // 2, size=n),  # odd ones are clicked
            "color": rng.choice(["red", "green"], n),
            "label": label,
            "gmv": rng.random(n),
        }
    )
    flags = ["--features", features, "--categorical", features, "--epochs", "20"]
    own = {
        "xgb": ["--epochs", "100"],
        "deepfm": ["--batch-size", "1024"],
        # The weight keeps the amount, which no city tells, from shaping the shared experts.
        "mmoe": ["--targets", "label,gmv", "--tasks", "ctr,gmv", "--task-weights", "1", "0.01"],
    }
    handler = load_handler(model, fit(model, table, *flags, *own[model]))

    def predicted(city: int, color: str) -> float:
        [prediction] = predict(handler, [{"city": city, "color": color}])
        return float(prediction["ctr"] if isinstance(prediction, dict) else prediction)

    assert predicted(1, "red") > 0.85
    assert predicted(0, "red") < 0.15
    for color in ("red", "green", "mauve"):
        assert predicted(999, color) == pytest.approx(label.mean(), abs=0.15)


def test_unknown_tokens_are_encoded_as_training_learned_them(
    artifact_folder: Callable[[Example], Path],
) -> None:
    for model in ("xgb", "deepfm"):
        example = next(e for e in module(model).EXAMPLES if e.version == "ids")
        handler = load_handler(model, artifact_folder(example))
        rows = [{"user_id": user, "price (EUR)": 7.0} for user in ("nobody", "no one", -1, 5, "5")]
        unknown, other, third, known, text = predict(handler, rows)
        assert unknown == other == third != known
        assert known == text


def test_normalize_writes_a_scaler_and_changes_no_prediction(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    plain = fit("xgb", data, version="plain")
    scaled = fit("xgb", data, "--normalize", version="scaled")
    meta, scaler = artifacts.read_meta(scaled), json.loads((scaled / SCALER_FILE).read_text())
    assert meta["normalized"] is True
    assert scaler["feature_columns"] == meta["feature_columns"]
    assert not (plain / SCALER_FILE).exists()
    rows = data.head(400).drop(columns=["label", "watch_time", "gmv"]).to_dict("records")
    handler = load_handler("xgb", scaled)
    expected = predict(load_handler("xgb", plain), rows)
    # Bounds of bins round differently on another scale, which moves a few rows.
    assert np.mean(np.isclose(predict(handler, rows), expected)) > 0.95
    assert isinstance(handler, XgbHandler)
    handler.inputs.mean = None
    assert np.mean(np.isclose(predict(handler, rows), expected)) < 0.5


BAD_FILES: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    (
        lambda t: t.drop(columns="label"),
        "table.csv: missing column label, the default of --label; it has item_ctr, item_cvr",
    ),
    (lambda t: t.rename(columns={"user_age": "user_aeg"}), "user_age (did you mean user_aeg?)"),
    (lambda t: t.head(0), "table.csv: has no rows, only column names"),
    (lambda t: t.assign(label=1), "column label: expected both 0 and 1, got only 1"),
    (lambda t: t.assign(label=t.label * 2), "column label: expected 0 or 1, got 2"),
    (
        lambda t: t.astype(object).replace({"user_age": {t.user_age[7]: "old"}}),
        'column user_age: expected a number, got "old"',
    ),
]


@pytest.mark.parametrize("model", ["xgb", "deepfm"])
@pytest.mark.parametrize(("spoil", "message"), BAD_FILES)
def test_a_bad_file_is_refused_before_training_starts(
    tmp_path: Path,
    data: pd.DataFrame,
    capsys: pytest.CaptureFixture[str],
    model: str,
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
) -> None:
    path = tmp_path / "table.csv"
    spoil(data).to_csv(path, index=False)
    root = tmp_path / "artifacts"
    assert train(model, "--data-path", str(path), "--artifacts-dir", str(root)) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert message in printed.err
    assert printed.out == ""
    assert not root.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--version", "../v1"], "--version '../v1': expected letters, digits, '.', '_' and '-'"),
        (["--categorical", "user_id"], "--categorical user_id: expected names of --features"),
        (["--features", "item_ctr,label"], "label: is both a feature and a target"),
        (["--data-path", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--data-path", "pyproject.toml"], "expected a file ending in .csv, .csv.gz, .tsv"),
        (["--features", "item_ctr,item_ctr"], "expected each column once, got item_ctr again"),
        (["--features", ""], "features: expected the name of a column or more"),
        (["--group", "user,item"], "user,item"),
        (["--group", "cross_age_x_ctr"], "--group cross_age_x_ctr: expected a column of the data"),
        (["--artifacts-dir", "pyproject.toml/x"], "expected a folder that can be written to"),
    ],
)
def test_a_senseless_flag_is_an_error_without_a_traceback(
    tmp_path: Path,
    data: pd.DataFrame,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    path = tmp_path / "table.csv"
    data.to_csv(path, index=False)
    places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("deepfm", *places, *flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("deepfm", ["--epochs", "0"], "--epochs 0: expected 1 or more"),
        ("xgb", ["--epochs", "0"], "--epochs 0: expected 1 or more"),
        ("item2vec", ["--epochs", "0"], "--epochs 0: expected 1 or more"),
        ("graph_recall", ["--p", "0"], "--p 0.0: expected 0.01 to 100"),
        ("mmoe", ["--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        ("mmoe", ["--task-weights", "1", "-1"], "--task-weights 1.0 -1.0: expected 0 or more"),
        ("xgb", ["--subsample", "2"], "--subsample 2.0: expected 0.001 to 1"),
        ("two_tower", ["--lr", "-1"], "--lr -1.0: expected 1e-09 to 1"),
        ("two_tower", ["--user-layers"], "--user-layers: expected at least one number, got none"),
        ("dssm", ["--layers", "64", "0"], "--layers 64 0: expected 1 or more"),
        ("dssm", ["--seed", "-1"], "--seed -1: expected 0 to 4294967295"),
        ("youtube_dnn", ["--valid-share", "0"], "--valid-share 0.0: expected 0.001 to 0.999"),
        ("youtube_dnn", ["--dropout", "nan"], "--dropout nan: expected 0 to 0.999"),
    ],
)
def test_a_number_out_of_bounds_is_refused_before_data_is_read(
    model: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(model, *flags) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_every_training_script_names_its_model() -> None:
    for model in map(catalog.get, catalog.model_names()):
        script, *flags = model.training
        config = tyro.cli(load_script(script).Config, args=flags)
        assert config.model == model.artifacts


def test_every_numeric_flag_has_bounds() -> None:
    for model in catalog.model_names():
        script = training_script(model).Config
        for name, hint in get_type_hints(script, include_extras=True).items():
            if name in NO_BOUNDS or get_origin(hint) is ClassVar:
                continue
            schema = pydantic.TypeAdapter(hint).json_schema()
            numbers = [
                part
                for part in (schema, schema.get("items", {}))
                if part.get("type") in ("integer", "number")
            ]
            assert all("minimum" in part for part in numbers), f"{model}: {name}"


@pytest.mark.parametrize("group", ["item", "user_age"])
def test_group_may_be_any_column_even_one_without_a_gauc(
    tmp_path: Path, data: pd.DataFrame, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data["item"] = range(len(data))  # no group has both labels
    path = tmp_path / "table.csv"
    data.to_csv(path, index=False)
    places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("xgb", *places, "--version", "v1", "--group", group, "--epochs", "5") == 0
    folder = tmp_path / "artifacts" / "xgb" / "v1"
    metrics = json.loads((folder / "metrics.json").read_text())["test"]["xgb"]
    assert ("gauc" in metrics) == (group == "user_age")
    load_handler("xgb", folder).replay_golden_rows(folder / "golden.json")


def test_the_recorded_commit_is_that_of_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(here, capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GIT_SHA", raising=False)
    assert artifacts._git_sha() == commit
    monkeypatch.setenv("GIT_SHA", "commit of the image")
    assert artifacts._git_sha() == "commit of the image"


def test_a_task_may_have_any_name(tmp_path: Path, data: pd.DataFrame) -> None:
    path = tmp_path / "table.csv"
    data.to_csv(path, index=False)
    places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    flags = ["--tasks", "c%d,%b,%", "--epochs", "1", "--version", "v1", "--no-single-task"]
    assert train("mmoe", *places, *flags) == 0
    folder = tmp_path / "artifacts" / "mmoe" / "v1"
    load_handler("mmoe", folder).replay_golden_rows(folder / "golden.json")


def test_mmoe_refuses_tasks_of_the_same_name(
    tmp_path: Path, data: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    data.rename(columns={"user_gender": "n"}).to_csv(tmp_path / "table.csv", index=False)
    flags = ["--data-path", str(tmp_path / "table.csv"), "--artifacts-dir", str(tmp_path)]
    flags += ["--features", "item_ctr,n", "--categorical", "n"]
    flags += ["--targets", "label,gmv", "--epochs", "1", "--no-single-task"]
    assert train("mmoe", *flags, "--version", "v1", "--tasks", "ctr,gmv") == 0
    assert train("mmoe", *flags, "--version", "v2", "--tasks", "ctr,ctr") == 1
    assert "--tasks ctr,ctr: expected each name once" in capsys.readouterr().err


def test_the_first_target_of_mmoe_must_be_a_label(
    tmp_path: Path, data: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.csv"
    data.to_csv(path, index=False)
    flags = ["--targets", "watch_time,label,gmv", "--tasks", "watch_time,ctr,gmv"]
    places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("mmoe", *places, *flags) == 1
    assert "column watch_time: expected 0 or 1, got " in capsys.readouterr().err


def test_an_interrupted_run_leaves_no_artifacts(
    tmp_path: Path, fit: Callable[..., Path], data: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    kept = weights(fit("xgb", data))
    monkeypatch.setattr(train_xgb, "save_curves", interrupt)
    places = ["--data-path", str(tmp_path / "table.parquet"), "--version", "v2"]
    assert train("xgb", "--artifacts-dir", str(tmp_path / "artifacts"), *places) == 130
    assert artifacts.versions("xgb", tmp_path / "artifacts") == ["v1"]
    assert weights(tmp_path / "artifacts" / "xgb" / "v1") == kept


def test_a_disk_error_ends_training_without_a_traceback(
    tmp_path: Path,
    fit: Callable[..., Path],
    data: pd.DataFrame,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fit("xgb", data)
    folder.rename(tmp_path / "v1")
    folder.parent.rmdir()
    folder.parent.touch()  # no folder can be made here
    places = ["--data-path", str(tmp_path / "table.parquet"), "--artifacts-dir"]
    assert train("xgb", *FAST["xgb"], *places, str(folder.parents[1])) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [Errno ")


def test_a_flag_of_the_training_script_is_not_an_abbreviation(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "echo")
    assert scripts.train.main(["--model", "item2vec", "--mode", "word2vec"]) == 0
    assert capfd.readouterr().out.endswith("-m training.train_item2vec --mode word2vec\n")


def test_a_killed_run_leaves_no_version(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from training.folders import writing_folder\n"
        "with writing_folder(Path(sys.argv[1]) / 'xgb' / 'v1', new=True) as folder:\n"
        "    (folder / 'xgb_model.json').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("xgb_model.json")) != []
    assert artifacts.versions("xgb", tmp_path) == []
