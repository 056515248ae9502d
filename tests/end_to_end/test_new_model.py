"""A new model is files added: no code is edited between training and an answer over HTTP."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from serving.testing import ROOT, running_server
from tests.examples.ranking import write_impressions

NEW_MODEL = ROOT / "tests" / "new_model"
ROW = {"item_cvr": 0.03, "item_price": 50.0, "user_age": 30, "user_gender": 1}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of the new model, and nothing else changed."""
    folder = tmp_path_factory.mktemp("checkout") / "recmar"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for path in NEW_MODEL.rglob("*"):
        target = folder / path.relative_to(NEW_MODEL)
        if path.is_file() and path.parent != NEW_MODEL and "__pycache__" not in path.parts:
            assert not target.exists(), f"{target} is edited, not added"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return folder


def python(checkout: Path, *arguments: str) -> str:
    """Run Python in the checkout and return what it printed; it must succeed."""
    result = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_new_model_answers_over_http(checkout: Path, tmp_path: Path) -> None:
    write_impressions(tmp_path / "data")
    flags = ["--data-path", str(tmp_path / "data"), "--version", "v1", "--strength", "0.5"]
    python(checkout, "-m", "scripts.train", "--model", "toy", *flags)
    python(checkout, "-m", "archive.package", "--model", "toy")
    with running_server(checkout / "model-store", checkout) as server:
        answer = requests.post(
            f"{server.inference_url}/predictions/toy",
            json={"data": [{**ROW, "item_ctr": 0.3}, {**ROW, "item_ctr": 0.01}]},
            timeout=10,
        )
    assert answer.status_code == 200
    likely, unlikely = answer.json()["predictions"]
    assert 1 > likely > unlikely > 0


def test_bounds_of_a_new_flag_are_checked_and_its_libraries_recorded(
    checkout: Path, tmp_path: Path
) -> None:
    train = [sys.executable, "-m", "training.train_toy", "--strength", "0"]
    result = subprocess.run(train, cwd=checkout, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "error: --strength 0.0: expected 0.001 to 1000\n"
    described = python(checkout, "-m", "archive.describe", "--model", "toy")
    assert "scikit-learn" in described


def test_the_readmes_gain_a_row(checkout: Path) -> None:
    python(checkout, "-m", "scripts.readme")
    for readme in ("README.md", "README.zh-CN.md"):
        assert "| `toy` |" in (checkout / readme).read_text(encoding="utf-8")


def test_the_shared_tests_cover_a_new_model(checkout: Path) -> None:
    """The contract of all models, run on the new one alone."""
    printed = python(
        checkout,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
        *("tests/handlers/test_contract.py", "-k", "toy"),
    )
    assert " passed" in printed
