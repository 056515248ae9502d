"""The command that writes item vectors."""

from pathlib import Path

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
    assert output.out == "item_embeddings -> item_embeddings_s: 2 items\n"
    assert "Traceback" not in output.err


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
