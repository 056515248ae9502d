"""The commands that an inspection prints work when they are copied into a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from archive import catalog
from scripts import inspect_data
from scripts.inspect_data import main
from tests.examples import load_handler, training_script
from training.tasks.search.world import text_pairs

FAST = {
    "deepfm": ["--epochs", "4"],
    "mmoe": ["--epochs", "4"],
    "two_tower": ["--epochs", "4"],
    "youtube_dnn": ["--epochs", "4"],
    "dssm": ["--epochs", "4", "--max-docs", "200"],
    "graph_recall": ["--epochs", "1"],
}


@dataclass(frozen=True)
class Case:
    """A data set of a kind that people have.

    Attributes:
        name: Name of the test.
        write: Writes the data into an empty folder and returns its path.
        model: Model to be proposed first.
        flags: Some of the flags to be proposed, with their values.
        better: A metric and the report that has to be worse in it.
        others: Models to be proposed after the first.
        left_out: Columns to be left out.
        trains_all: Whether to train all models, not only the first.
    """

    name: str
    write: Callable[[Path], Path]
    model: str
    flags: list[str]
    better: tuple[str, str] = ("auc", "base rate")
    others: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    trains_all: bool = False


def people(n: int = 1500) -> pd.DataFrame:
    """Draw rows like those of UCI Adult, which has a blank after each comma."""
    rng = np.random.default_rng(0)
    jobs = np.array(["Tech-support", "Sales", "Farming-fishing"])[rng.integers(0, 3, n)]
    age = rng.integers(17, 80, n)
    rich = rng.random(n) < 0.1 + 0.5 * (jobs == "Sales") + 0.2 * (age > 40)
    return pd.DataFrame(
        {
            "age": age,
            "occupation": jobs,
            "sex": np.array(["Male", "Female"])[rng.integers(0, 2, n)],
            "planet": "Earth",
            "wage_class": np.where(rich, ">50K", "<=50K"),
        }
    )


def ratings(n: int = 3000) -> pd.DataFrame:
    """Draw rows like those of MovieLens: of a movie with genres, and a user with a favorite."""
    rng = np.random.default_rng(0)
    genres = np.array(["Action|Comedy", "Comedy", "Drama|Action", "Drama"])
    item, user = rng.integers(0, 40, n), rng.integers(0, 60, n)
    age = 18 + user
    likes = rng.random(n) < 0.15 + 0.4 * (item % 2) + 0.35 * (age > 48)
    return pd.DataFrame(
        {
            "user_id": user + 100,
            "item_id": item + 1,
            "title": [f"Movie {i} (1995)" for i in item],
            "genres": genres[item % 4],
            "age": age,
            "liked": likes.astype(int),
            "watch_time": np.where(likes, rng.integers(60, 600, n), 0),
            "event_time": 1_764_000_000 + 60 * np.arange(n),
            "row": np.arange(n),
        }
    )


def write_people(folder: Path) -> Path:
    """Write UCI's layout."""
    path = folder / "adult.csv"
    path.write_text(people().to_csv(index=False).replace(",", ", "))
    return path


def write_semicolons(folder: Path) -> Path:
    """Write semicolons, a path with a blank and a quote, and a column that needs quotes."""
    path = folder / "people's ratings.csv"
    ratings().rename(columns={"age": "users $age"}).to_csv(path, sep=";", index=False)
    return path


def write_tabs(folder: Path) -> Path:
    """Write tabs."""
    path = folder / "ratings.tsv"
    ratings().drop(columns="watch_time").to_csv(path, sep="\t", index=False)
    return path


def write_parquet(folder: Path) -> Path:
    """Write lists and timestamps."""
    table = ratings()
    table["tags"] = table.pop("genres").str.split("|")
    table["event_time"] = pd.to_datetime(table["event_time"], unit="s")
    path = folder / "ratings.parquet"
    table.to_parquet(path, index=False)
    return path


def write_jsonl(folder: Path) -> Path:
    """Write lists, ISO times and booleans."""
    table = ratings().drop(columns="watch_time")
    table["genres"] = table["genres"].str.split("|")
    times = pd.to_datetime(table["event_time"], unit="s")
    table["event_time"] = times.dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    table["liked"] = table["liked"] == 1
    path = folder / "ratings.jsonl"
    table.to_json(path, orient="records", lines=True)
    return path


def write_stars(folder: Path) -> Path:
    """Write stars instead of a label, a third of them missing; users stay among ten items."""
    table = ratings()
    table["stars"] = np.where(table["row"] % 3, 1 + 4 * table["liked"], np.nan)
    table["item_id"] = table["user_id"] % 4 * 10 + table["item_id"] % 10
    path = folder / "stars.parquet"
    table[["user_id", "item_id", "stars", "age"]].to_parquet(path, index=False)
    return path


def write_interactions(folder: Path) -> Path:
    """Write users who walk through the items."""
    rng = np.random.default_rng(0)
    user, step = np.repeat(np.arange(150), 12), np.tile(np.arange(12), 150)
    item = (rng.integers(0, 30, 150)[user] + step) % 30
    table = pd.DataFrame({"uid": user, "sku": item, "gender": user % 2, "ts": 1.7e9 + step})
    path = folder / "log.csv"
    table.sample(frac=1, random_state=0).to_csv(path, index=False)
    return path


def write_searches(folder: Path) -> Path:
    """Write queries and the documents that answer them."""
    inputs, _ = text_pairs(1500, seed=0)
    path = folder / "searches.csv"
    inputs[["query", "doc"]].to_csv(path, index=False)
    return path


def write_edges(folder: Path) -> Path:
    """Write the edges of two groups."""
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 40, (2, 800))
    target = np.where(rng.random(800) < 0.95, source // 20 * 20 + target % 20, target)
    path = folder / "edges.csv"
    pd.DataFrame({"source": source, "target": target}).to_csv(path, index=False)
    return path


def write_edge_list(folder: Path) -> Path:
    """Write the same as lines without a header."""
    edges = pd.read_csv(write_edges(folder))
    path = folder / "edges.txt"
    edges.to_csv(path, sep=" ", index=False, header=False)
    return path


HIT_RATE = ("hr_at_10", "popularity")
CASES = [
    Case(
        "UCI Adult",
        write_people,
        "deepfm",
        ["--categorical", "occupation,sex"],
        left_out=["planet"],
    ),
    Case(
        "semicolons",
        write_semicolons,
        "deepfm",
        ["--separator", ";", "--multi", "genres:|", "--time-column", "event_time"],
        others=["mmoe", "two_tower"],
        left_out=["title", "row"],
        trains_all=True,
    ),
    Case("tabs", write_tabs, "deepfm", ["--group", "user_id"], others=["two_tower"]),
    Case(
        "Parquet",
        write_parquet,
        "deepfm",
        ["--multi", "tags", "--timestamp", "event_time"],
        others=["mmoe", "two_tower"],
    ),
    Case("JSON lines", write_jsonl, "deepfm", ["--multi", "genres"], others=["two_tower"]),
    Case(
        "ratings", write_stars, "youtube_dnn", [], HIT_RATE, ["item2vec", "deepfm"], trains_all=True
    ),
    Case(
        "interactions",
        write_interactions,
        "youtube_dnn",
        ["--user-col", "uid", "--item-col", "sku", "--time-column", "ts", "--exclude-history"],
        HIT_RATE,
        ["item2vec"],
    ),
    Case("searches", write_searches, "dssm", ["--text", "--query-cols", "query"], HIT_RATE),
    Case("edges", write_edges, "graph_recall", [], ("link_auc", "popularity")),
    Case("edge list", write_edge_list, "graph_recall", [], ("link_auc", "popularity")),
]


def bash(command: str, folder: Path, functions: str = "") -> str:
    """Run a command as if it was copied into a terminal."""
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(catalog.ROOT / ".venv")
    # `make test` must not be seen as the parent of the command's own make.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["bash", "-e", "-c", f"{functions}\n{command}"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def training_flags(command: str, folder: Path) -> list[str]:
    """Return the flags that `make train` hands to the training script."""
    (folder / "Makefile").write_text('train:\n\t@printf "%s\\n" $(ARGS)\n')
    return bash(command, folder).splitlines()


def run_inspection(path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """Return what an inspection prints."""
    assert main([str(path), *flags]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if len(line) > 80 and "/" not in line] == []
    return printed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_proposed_commands_train_and_their_request_is_answered(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run_inspection(case.write(tmp_path), capsys)
    for step in re.findall(r"^\.venv/bin/python .*?^END$", printed, re.MULTILINE | re.DOTALL):
        bash(step, tmp_path)
    commands = re.findall(r"^make train .*?(?=\n\n|\Z)", printed, re.MULTILINE | re.DOTALL)
    models = [command.split()[2].removeprefix("MODEL=") for command in commands]
    assert models == [case.model, *case.others]
    for name in case.left_out:
        assert re.search(rf"^ {name} .*\w", printed.split("left out")[1], re.MULTILINE)
    for model, command in zip(models, commands if case.trains_all else commands[:1], strict=False):
        flags = training_flags(command, tmp_path)
        if model == case.model:
            assert set(case.flags) <= set(flags)
        arguments = [*flags, *FAST.get(model, [])]
        root = tmp_path / "artifacts"
        training = training_script(model)
        assert training.main([*arguments, "--artifacts-dir", str(root), "--version", "v1"]) == 0
    folder = root / case.model / "v1"
    reports = json.loads((folder / "metrics.json").read_text())["test"]
    metric, baseline = case.better
    assert reports[case.model][metric] > reports[baseline][metric] + 0.05
    curl = re.search(r"^curl .*?(?=\n\n|\n\Z)", printed, re.MULTILINE | re.DOTALL)
    assert curl
    body = bash(curl[0], tmp_path, 'curl() { printf "%s" "$4"; }')
    [(status, answer)], _ = load_handler(case.model, folder).answer([body.encode()])
    assert status == 200, answer
    assert curl[0].endswith(f"/predictions/{case.model}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a file or --data-source; try: make inspect DATA=clicks.csv"),
        (["none.csv"], "none.csv: no such file"),
        (["empty.csv"], "empty.csv: cannot be read: it is empty; expected a header"),
        (["empty.jsonl"], "empty.jsonl: is empty; expected a JSON object in each line"),
        (["header.csv"], "header.csv: has no rows, only column names"),
        (["table.xlsx"], "expected a file ending in .csv"),
        (["--data-source", "mysql"], "--data-source mysql: expected --table or --query"),
    ],
)
def test_what_cannot_be_read_is_named(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty.csv", "empty.jsonl", "table.xlsx"):
        (tmp_path / name).touch()
    (tmp_path / "header.csv").write_text("a,b\n")
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err


def test_ctrl_c_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_data, "inspect", interrupted)
    assert main([str(write_edges(tmp_path))]) == 130
    assert capsys.readouterr() == ("", "")


def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config = inspect_data.Config(
        data_source="postgres",
        table="clicks",
        dsn="postgresql://reader:secret@db/recs",
        doris_password="secret",
    )
    assert "secret" not in str(inspect_data.source_flags(config))
    config = inspect_data.Config(data_source="mysql", doris_host="db", query="SELECT 1")
    assert inspect_data.source_flags(config) == [
        ["--data-source", "mysql"],
        ["--query", "SELECT 1"],
        ["--mysql-host", "db"],
    ]
