"""A run that was killed continues where it was, and ends as if nothing had happened."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from archive import catalog
from serving.testing import ROOT
from tests.examples import Example, module, train
from training.engine import boosting, checkpoints
from training.engine.checkpoints import Checkpoints, checkpoint_folder
from training.run import INTERRUPTED
from training.tasks.ranking.world import impressions

EXAMPLES = [module(name).EXAMPLES[-1] for name in ("mmoe", "din", "graph_recall", "item2vec")]
TIMEOUT_S = 60.0


@pytest.fixture(autouse=True)
def save_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every epoch, however short."""
    monkeypatch.setattr(checkpoints, "MAX_SAVING_SHARE", 1e9)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes a run end after a number of checkpoints."""
    save = Checkpoints.save

    def after(n_saves: int) -> None:
        left = [n_saves]

        def save_and_end(self: Checkpoints, name: str, state: Mapping[str, Any]) -> None:
            save(self, name, state)
            left[0] -= 1
            if not left[0]:
                monkeypatch.setattr(Checkpoints, "save", save)
                raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoints, "save", save_and_end)

    return after


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A small table of the default data."""
    path = tmp_path / "table.csv"
    impressions(1_000, seed=5)[0].to_csv(path, index=False)
    return path


@pytest.fixture
def flags(tmp_path: Path, table: Path) -> list[str]:
    """Flags of a quick run."""
    places = ["--data-path", str(table), "--artifacts-dir", str(tmp_path / "artifacts")]
    return [*places, "--epochs", "3"]


def learned(folder: Path) -> dict[str, bytes]:
    """Return the content of every file that does not tell the time."""
    files = [p for p in folder.iterdir() if not p.name.endswith(("_meta.json", ".png"))]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_a_resumed_run_writes_the_same_files(
    example: Example,
    interrupt: Callable[[int], None],
    artifact_folder: Callable[[Example], Path],
    data_folder: Callable[[Example], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = ["--data-path", str(data_folder(example)), "--artifacts-dir", str(tmp_path)]
    flags = [*example.arguments, *places]
    interrupt(2)
    assert train(example.model, *flags, "--version", "v7") == INTERRUPTED
    assert "to continue, add: --resume --version v7" in caplog.text
    folder = tmp_path / catalog.get(example.model).artifacts / "v7"
    assert not folder.exists()
    assert checkpoint_folder(folder).exists()

    assert train(example.model, *flags, "--resume") == 0
    assert "--resume: continues version v7, the latest unfinished one" in caplog.text
    assert "resumed after epoch 2" in caplog.text
    assert learned(folder) == learned(artifact_folder(example))
    assert not checkpoint_folder(folder).exists()


def test_resumed_trees_are_the_same(
    flags: list[str],
    tmp_path: Path,
    interrupt: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(boosting, "CHECKPOINT_TREES", 10)
    flags = [*flags, "--epochs", "35", "--version"]
    interrupt(2)
    assert train("xgb", *flags, "resumed") == INTERRUPTED
    assert train("xgb", *flags, "resumed", "--resume") == 0
    assert "resumed after 20 trees" in caplog.text
    assert train("xgb", *flags, "whole") == 0
    root = tmp_path / "artifacts" / "xgb"
    assert learned(root / "resumed") == learned(root / "whole")


def test_a_process_that_was_killed_resumes(flags: list[str], tmp_path: Path) -> None:
    flags = [*flags, "--version", "v1", "--epochs", "20", "--patience", "20"]
    command = [sys.executable, "-m", "training.train_deepfm", *flags]
    folder = tmp_path / "artifacts" / "deepfm" / "v1"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + TIMEOUT_S
    while not (checkpoint_folder(folder) / "loop-1.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()

    resumed = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"resumed after epoch \d+", resumed.stderr)
    assert train("deepfm", *flags, "--version", "whole") == 0
    assert learned(folder) == learned(folder.with_name("whole"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--lr", "0.1", "--epochs", "4"], "--epochs was 3, is 4; --lr was 0.002, is 0.1"),
        (["--embedding-dim", "4"], "--embedding-dim was 16, is 4"),
        (["--version", "v2"], "has no unfinished run of version v2; it has v1"),
        (["--engine", "ray"], "--resume: expected --engine local, got ray"),
        (["--data-path", "other.csv"], "expected the rows of the unfinished run, got others"),
    ],
)
def test_other_flags_and_other_data_are_refused(
    changed: list[str],
    message: str,
    flags: list[str],
    table: Path,
    interrupt: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(table.parent)
    pd.read_csv(table)[1:].to_csv("other.csv", index=False)
    interrupt(1)
    assert train("deepfm", *flags, "--version", "v1") == INTERRUPTED
    assert train("deepfm", *flags, "--resume", *changed) == 1
    assert message in capsys.readouterr().err


def test_the_same_data_may_be_elsewhere(
    flags: list[str], table: Path, interrupt: Callable[[int], None]
) -> None:
    interrupt(1)
    assert train("deepfm", *flags, "--version", "v1") == INTERRUPTED
    moved = table.rename(table.with_name("moved.csv"))
    assert train("deepfm", *flags, "--resume", "--data-path", str(moved)) == 0


def test_there_must_be_something_to_resume(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("deepfm", *flags, "--resume") == 1
    assert "artifacts/deepfm has no unfinished run\n" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(
    flags: list[str],
    tmp_path: Path,
    interrupt: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt(1)
    assert train("deepfm", *flags, "--version", "v1") == INTERRUPTED
    path = tmp_path / "artifacts" / "deepfm" / ".v1.checkpoint" / "loop-1.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert train("deepfm", *flags, "--resume") == 1
    error = capsys.readouterr().err
    assert f"error: {path}: cannot be read: " in error
    assert "train without --resume" in error


def test_without_the_flag_a_run_starts_again_and_says_so(
    flags: list[str],
    tmp_path: Path,
    interrupt: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupt(1)
    assert train("deepfm", *flags, "--version", "v1") == INTERRUPTED
    interrupt(2)
    assert train("deepfm", *flags, "--version", "v1", "--seed", "1") == INTERRUPTED
    assert "which the first checkpoint of this one replaces" in caplog.text
    run = tmp_path / "artifacts" / "deepfm" / ".v1.checkpoint" / "run.json"
    assert json.loads(run.read_text())["flags"]["seed"] == 1


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    assert train("deepfm", *flags, "--version", "v1") == 0
    assert "no checkpoint was saved: no space left on device" in caplog.text
