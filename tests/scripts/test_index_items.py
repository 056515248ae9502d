"""The command that writes item vectors."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scripts import index_items
from training.artifacts import IDS_FILE, VECTORS_FILE

DIM = 8


def write_artifacts(root: Path, n_vectors: int) -> None:
    """Artifacts of two_tower: two item ids, and some number of vectors."""
    folder = root / "two_tower" / "v1"
    folder.mkdir(parents=True)
    np.save(folder / VECTORS_FILE, np.zeros((n_vectors, DIM), dtype=np.float32))
    (folder / IDS_FILE).write_text('["a", "b"]')
    (folder / "two_tower_meta.json").write_text('{"files": {}, "space_id": "s"}')


def test_milvus_lite_prints_nothing_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_artifacts(tmp_path, n_vectors=2)
    flags = ["--model", "two_tower", "--artifacts-dir", str(tmp_path)]
    assert index_items.main([*flags, "--uri", str(tmp_path / "milvus.db")]) == 0
    output = capfd.readouterr()
    newest, written = output.out.splitlines()
    assert newest.startswith("two_tower v1, the newest, because none serves on port ")
    assert written == "item_embeddings -> item_embeddings_s: 2 items"
    assert "Traceback" not in output.err


def test_the_version_that_serves_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_artifacts(tmp_path, n_vectors=2)
    shutil.copytree(tmp_path / "two_tower" / "v1", tmp_path / "two_tower" / "v2")
    served = {"two_tower": "v1", "user_tower": "v1"}
    monkeypatch.setattr(
        index_items,
        "versions_here",
        lambda _, name: [SimpleNamespace(version=served[name])] if name in served else None,
    )
    flags = ["--model", "two_tower", "--artifacts-dir", str(tmp_path)]
    flags += ["--format", "json", "--out", str(tmp_path)]
    assert index_items.main(flags) == 0
    assert capsys.readouterr().out.startswith("two_tower v1, which serves on port ")
    assert index_items.main([*flags, "--version", "v2"]) == 0
    assert capsys.readouterr().out.startswith("two_tower v2, as --version says\n")
    served["user_tower"] = "v2"
    assert index_items.main(flags) == 1
    assert "two_tower v1, user_tower v2 serve on port " in capsys.readouterr().err


def test_batch_size_is_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert index_items.main(["--batch-size", "0"]) == 2
    assert "--batch-size 0: expected 1 or more" in capsys.readouterr().err


def test_vectors_that_do_not_match_their_ids_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_artifacts(tmp_path, n_vectors=3)
    status = index_items.main(
        ["--model", "two_tower", "--artifacts-dir", str(tmp_path), "--format", "json"]
    )
    assert status == 1
    assert "expected a vector for each of 2 ids" in capsys.readouterr().err


def test_a_model_without_an_index_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert index_items.main(["--model", "two_tower,xgb"]) == 1
    assert "xgb: has no index" in capsys.readouterr().err
