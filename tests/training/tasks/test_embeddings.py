"""Fixed vectors of a category, and the pooling of lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pytest
import torch

from handlers.deepfm_handler import DeepFMHandler
from handlers.models.inputs import FeatureInputs
from tests.examples import train
from training import artifacts

N_ITEMS, N_COLD, N_COMPONENTS = 400, 100, 4
VECTORS = np.random.default_rng(0).normal(size=(N_ITEMS, N_COMPONENTS)).round(3)
FLAGS = ("--features", "item_id,age", "--categorical", "item_id")
FIT = ("--epochs", "6", "--batch-size", "256", "--lr", "1e-2")


def write_clicks(folder: Path) -> None:
    """Write clicks that depend on one component of the item's vector; half the test is cold."""
    folder.mkdir()
    for seed, (split, n) in enumerate({"train": 6_000, "valid": 1_000, "test": 1_000}.items()):
        rng = np.random.default_rng([1, seed])
        item = rng.integers(N_COLD if split == "train" else 0, N_ITEMS, size=n)
        if split == "test":
            item[::2] = rng.integers(N_COLD, size=len(item[::2]))
        label = rng.random(n) < 1 / (1 + np.exp(-3 * VECTORS[item, 1]))
        frame = pd.DataFrame({"item_id": item, "age": rng.integers(18, 60, n), "label": label})
        frame.to_csv(folder / f"{split}.csv", index=False)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings") / "clicks"
    write_clicks(folder)
    return folder


def as_lists(path: Path) -> None:
    pd.DataFrame({"item_id": range(N_ITEMS), "vector": VECTORS.tolist()}).to_parquet(path)


def as_columns(path: Path) -> None:
    frame = pd.DataFrame(VECTORS, columns=[f"v{i}" for i in range(N_COMPONENTS)])
    frame.insert(0, "id", [f"{i}.0" for i in range(N_ITEMS)])
    frame.to_csv(path, index=False)


@pytest.mark.parametrize(("name", "write"), [("v.parquet", as_lists), ("v.csv", as_columns)])
def test_items_that_training_never_saw_are_ranked_by_their_vectors(
    clicks: Path, tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    places = ["--data-path", str(clicks), "--artifacts-dir", str(tmp_path), "--version", "v1"]
    vectors = ["--embeddings", f"item_id:{tmp_path / name}"]
    assert train("deepfm", *places, *FLAGS, *FIT, *vectors) == 0
    folder = tmp_path / "deepfm" / "v1"
    assert artifacts.read_meta(folder)["metrics"]["auc"] > 0.85

    handler = DeepFMHandler()
    handler.load(folder)
    handler.replay_golden_rows(folder / "golden.json")
    cold = [{"item_id": i, "age": 30} for i in range(N_COLD)]
    scores = handler.predict(handler.decoder.decode(orjson.dumps({"data": cold})))
    assert np.corrcoef(scores, VECTORS[:N_COLD, 1])[0, 1] > 0.8


def test_without_vectors_unknown_items_are_alike(clicks: Path, tmp_path: Path) -> None:
    places = ["--data-path", str(clicks), "--artifacts-dir", str(tmp_path), "--version", "v1"]
    assert train("deepfm", *places, *FLAGS, *FIT) == 0
    assert artifacts.read_meta(tmp_path / "deepfm" / "v1")["metrics"]["auc"] < 0.8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item_id,a\n1,2\n1,3\n", "expected one vector for each item_id, got two for 1"),
        ("item_id,a\n1,x\n", 'v.csv: row 2, column a: expected a number, got "x"'),
        ("item_id,a\n1,2\n2,\n", "v.csv: row 3, column a: expected a number, got none"),
        ("item_id,a\n,2\n", "v.csv: row 2, column item_id: expected a token, got none"),
        ("item_id\n1\n", "expected a token and its vector in each row, got one cell"),
        ("item_id,a\n", "expected vectors of one length, got no rows"),
        (
            "item_id,a\n7.234567890123457e+18,1\n",
            "v.csv: row 2, column item_id: expected ids, got 7.234567890123457e+18",
        ),
    ],
)
def test_a_bad_file_of_vectors_is_refused(
    clicks: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.csv").write_text(content)
    vectors = ["--embeddings", f"item_id:{tmp_path / 'v.csv'}"]
    assert train("deepfm", "--data-path", str(clicks), *FLAGS, *vectors) == 1
    assert message in capsys.readouterr().err


def test_vectors_of_two_lengths_are_refused(
    clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.parquet"
    pd.DataFrame({"item_id": [1, 2], "vector": [[1.0], [1.0, 2.0]]}).to_parquet(path)
    vectors = ["--embeddings", f"item_id:{path}"]
    assert train("deepfm", "--data-path", str(clicks), *FLAGS, *vectors) == 1
    assert "column vector: expected lists of one length, got 1, 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embeddings", "item_id"], "expected a category and a file"),
        (["--embeddings", "age:v.csv"], "--embeddings age: expected names of"),
        (["--embeddings", "item_id:no-such.parquet"], "no-such.parquet"),
    ],
)
def test_a_senseless_flag_is_refused(
    clicks: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("deepfm", "--data-path", str(clicks), *FLAGS, *flags) == 1
    assert message in capsys.readouterr().err


def test_pooling_is_the_mean_or_the_sum_of_the_tokens_that_are_there() -> None:
    matrix = torch.tensor([[2.0, 3.0, 0.0], [0.0, 0.0, 0.0], [4.0, 4.0, 4.0]])
    for pooling in ("mean", "sum"):
        inputs = FeatureInputs([(5, 3)], embedding_dim=2, pooling=pooling)
        rows = inputs.embedding.weight
        _, fields = inputs(matrix)
        pooled = rows[2] + rows[3]
        assert torch.allclose(fields[0, 0], pooled / 2 if pooling == "mean" else pooled)
        assert (fields[1] == 0).all()
        assert torch.allclose(fields[2, 0], rows[4] * (1 if pooling == "mean" else 3))
