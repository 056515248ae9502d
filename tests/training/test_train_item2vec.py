"""item2vec and word2vec: the files that the Go services load, and where tokens come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from handlers.base import RecHandler
from handlers.models.item2vec import VECTORS_FILES
from tests.examples import Example, load_handler, module, predict, train
from training.tasks.next_item.world import draw_corpus, draw_sequences


@pytest.fixture
def data() -> pd.DataFrame:
    """Draw a small table of the default interactions."""
    return draw_sequences(n_users=200, seed=5)[0]


@pytest.fixture
def texts() -> pd.DataFrame:
    """Draw a small table of the default texts."""
    return draw_corpus(n_texts=200, seed=5)[0]


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains on a table and returns the artifact folder."""

    def run(model: str, table: pd.DataFrame, *flags: str, version: str = "v1") -> Path:
        path = tmp_path / "table.csv"
        table.to_csv(path, index=False)
        places = ["--data", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
        small = ["--epochs", "1", "--dim", "8", "--version", version]
        assert train(model, *small, *places, *flags) == 0
        return tmp_path / "artifacts" / model / version

    return run


@pytest.fixture
def serve(artifact_folder: Callable[[Example], Path]) -> Callable[[str], RecHandler]:
    """Return a function that loads the handler of a model's shared example."""
    return lambda model: load_handler(model, artifact_folder(module(model).EXAMPLES[0]))


def vectors(folder: Path) -> dict[str, list[float]]:
    """Read the vectors of an artifact folder by token."""
    [path] = folder.glob("*_vectors.json")
    found: dict[str, list[float]] = json.loads(path.read_text())
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Start a training run that must fail, and return its messages."""
    assert train(*arguments) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("model", ["item2vec", "word2vec"])
def test_vectors_file_holds_finite_vectors_and_is_reproducible(
    fit: Callable[..., Path], data: pd.DataFrame, texts: pd.DataFrame, model: str
) -> None:
    table = {"item2vec": data, "word2vec": texts}[model]
    folder = fit(model, table)
    first = vectors(folder)
    assert first.keys() <= set(data["item_id"]) | set(" ".join(texts["text"]).split())
    assert {len(vector) for vector in first.values()} == {8}
    assert np.isfinite(list(first.values())).all()
    out_vectors = np.load(folder / f"{model}_out_vectors.npy", allow_pickle=False)
    assert out_vectors.shape == (len(first), 8)
    assert vectors(fit(model, table, version="v2")) == first
    assert vectors(fit(model, table, "--seed", "1", version="v3")) != first


def test_out_flag_writes_the_same_file_elsewhere(
    fit: Callable[..., Path], data: pd.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "go" / "items.json"
    folder = fit("item2vec", data, "--out", str(out))
    assert out.read_bytes() == (folder / VECTORS_FILES["item2vec"]).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("separator", [" ", ",", ", "])
def test_sequence_in_one_cell_equals_a_row_for_each_item(
    fit: Callable[..., Path], data: pd.DataFrame, separator: str
) -> None:
    by_user = data.groupby("user_id", sort=False)["item_id"]
    cells = by_user.agg(separator.join).rename("items").reset_index()
    lists = by_user.agg(lambda items: json.dumps(list(items))).rename("items").to_frame()
    expected = vectors(fit("item2vec", data))
    flag = ["--sequence-col", "items"]
    assert vectors(fit("item2vec", cells, *flag, version="cells")) == expected
    without = fit("item2vec", lists, *flag, "--user-col", "", version="lists")
    assert vectors(without) == expected


def test_item_in_its_own_row_may_hold_any_character(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    titles = data.assign(item_id="Toy Story, " + data["item_id"])
    folder = fit("item2vec", titles)
    assert all(token.startswith("Toy Story, item_") for token in vectors(folder))
    handler = load_handler("item2vec", folder)
    predict(handler, {"sequence": [titles["item_id"].mode()[0]]})
    assert handler.counts.out_of_vocabulary.tolist() == [0]


def test_case_and_punctuation_of_a_text_do_not_matter(
    fit: Callable[..., Path], texts: pd.DataFrame
) -> None:
    shouted = texts.assign(text=texts["text"].str.upper() + "!")
    handler = load_handler("word2vec", fit("word2vec", shouted))
    calm, loud = predict(handler, [{"text": "stop0 stop1"}, {"text": "Stop0, STOP1?"}])
    assert calm == loud
    assert any(calm)


def test_few_users_are_enough_to_beat_popularity(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(5, size=100)  # users take items of one group
    rows = [(u, f"i{g * 20 + i}") for u, g in enumerate(groups) for i in rng.integers(20, size=10)]
    pd.DataFrame(rows, columns=["user_id", "item_id"]).to_csv(tmp_path / "t.csv", index=False)
    flags = ["--data", str(tmp_path / "t.csv"), "--artifacts-dir", str(tmp_path)]
    assert train("item2vec", *flags, "--version", "v1") == 0
    metrics = json.loads((tmp_path / "item2vec" / "v1" / "metrics.json").read_text())["test"]
    assert metrics["item2vec"]["hr_at_10"] > 1.5 * metrics["popularity"]["hr_at_10"]


def test_words_that_only_end_texts_have_vectors(fit: Callable[..., Path]) -> None:
    texts = pd.DataFrame({"text": ["nike shoes", "sony headphones", "adidas shoes"] * 20})
    assert {"shoes", "headphones"} < set(vectors(fit("word2vec", texts)))


def test_rare_tokens_get_no_vector(fit: Callable[..., Path], data: pd.DataFrame) -> None:
    kept = len(vectors(fit("item2vec", data)))
    fewer = vectors(fit("item2vec", data, "--min-count", "9", version="v2"))
    assert 0 < len(fewer) < kept


@pytest.mark.parametrize(
    ("model", "key", "unknown", "empty"),
    [("item2vec", "sequence", ["?", 7], []), ("word2vec", "text", "wh4t is th1s", "")],
)
def test_row_without_known_tokens_gets_zeros_and_is_counted(
    serve: Callable[[str], RecHandler], model: str, key: str, unknown: Any, empty: Any
) -> None:
    handler = serve(model)
    rows: list[dict[str, Any]] = [{key: unknown}, {key: empty}, {key: None}, {}]
    predictions = predict(handler, rows)
    assert len(predictions[0]) == 32
    assert not np.any(predictions)
    assert handler.counts.out_of_vocabulary.tolist() == [len(unknown) if key != "text" else 3]
    assert handler.counts.missing.tolist() == [2]


@pytest.mark.parametrize(
    ("model", "row", "message"),
    [
        ("item2vec", {"sequence": "item_1"}, "data[0].sequence: expected a list, got"),
        ("item2vec", {"sequence": [["item_1"]]}, "data[0].sequence[0]: expected a string or a num"),
        ("item2vec", ["item_1"], "data[0]: expected an object, got"),
        ("word2vec", {"text": 7}, "data[0].text: expected a text, got 7"),
    ],
)
def test_error_names_the_place_in_a_bad_row(
    serve: Callable[[str], RecHandler], model: str, row: Any, message: str
) -> None:
    [(status, body)], _ = serve(model).answer([json.dumps({"data": [row]}).encode()])
    assert status == 400
    assert message in json.loads(body)["message"]


def test_no_gen_flag_generates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, folder in {"item2vec": "data/sequences", "word2vec": "data/corpus"}.items():
        message = refused(capsys, model, "--no-gen")
        assert f"{folder}: no such folder; name a file with --data" in message
    assert list(tmp_path.iterdir()) == []


def test_bad_data_ends_the_run_before_training_starts(
    tmp_path: Path, data: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.csv"
    data.to_csv(path, index=False)
    places = ["--data", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert "missing column text" in refused(capsys, "word2vec", *places)
    for flags, message in {
        ("--sequence-col", "sku"): "missing column sku",
        ("--user-col", "uid"): "missing column uid",
        ("--time-column", "user_id"): "column user_id: expected an ISO 8601 date",
        ("--min-count", "1000"): "expected 2 items or more that come 1000 times",
    }.items():
        assert message in refused(capsys, "item2vec", *places, *flags)
    assert not (tmp_path / "artifacts").exists()
