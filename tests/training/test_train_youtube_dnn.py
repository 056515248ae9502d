"""YouTube DNN: its histories, and the one item table that serves input and output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from handlers.base import RecHandler
from handlers.models.weights import load_network
from handlers.models.youtube_dnn import WEIGHTS_FILE, YouTubeDNN
from handlers.request_rows import HISTORY_KEY
from tests.examples import Example, load_handler, module, predict, train
from training import artifacts
from training.artifacts import IDS_FILE, VECTORS_FILE
from training.metrics.retrieval import expected_ranks, retrieval_report
from training.tasks.next_item.world import SEQUENCES_FILE, draw_sequences

USER = {"user_age": 30, "user_gender": 2}

MODEL = "youtube_dnn"


@pytest.fixture
def data() -> pd.DataFrame:
    """Draw a small table of the default data."""
    return draw_sequences(n_users=200, seed=5)[0]


@pytest.fixture
def trained(artifact_folder: Callable[[Example], Path]) -> Path:
    """Return the artifact folder of the shared example."""
    return artifact_folder(module("youtube_dnn").EXAMPLES[0])


@pytest.fixture
def handler(trained: Path) -> RecHandler:
    """Return a handler that serves it."""
    return load_handler("youtube_dnn", trained)


@pytest.fixture
def ids(trained: Path) -> list[str]:
    """Return the items of its vocabulary, the most frequent first."""
    found: list[str] = json.loads((trained / IDS_FILE).read_text())
    return found


def embed(handler: RecHandler, *histories: Any) -> npt.NDArray[np.float64]:
    """Embed one user after several histories, [histories, D]."""
    rows = [{"user_features": USER, HISTORY_KEY: history} for history in histories]
    return np.atleast_2d(predict(handler, rows))


def test_served_users_and_exported_items_reproduce_the_reported_metrics(
    trained: Path,
    handler: RecHandler,
    ids: list[str],
    data_folder: Callable[[Example], Path],
) -> None:
    log = pd.read_csv(data_folder(module("youtube_dnn").EXAMPLES[0]) / SEQUENCES_FILE)
    items = log.groupby("user_id", sort=False)["item_id"].agg(list)
    users = log.groupby("user_id", sort=False)[["user_age", "user_gender"]].last()
    rows = users.assign(**{HISTORY_KEY: items.str[:-1]}).to_dict("records")
    vectors = np.load(trained / VECTORS_FILE, allow_pickle=False)
    scores = np.array(predict(handler, rows), dtype=np.float32) @ vectors.T
    targets = pd.Index(ids).get_indexer(pd.Index(items.str[-1]))
    ranks = np.where(targets < 0, np.inf, expected_ranks(scores, targets.clip(0)))
    reported = json.loads((trained / "metrics.json").read_text())["test"]["youtube_dnn"]
    for metric, value in retrieval_report(ranks).items():
        assert value == pytest.approx(reported[metric], abs=2e-3)


def test_exported_item_vectors_are_those_that_histories_are_read_by(
    trained: Path, ids: list[str]
) -> None:
    network = load_network(YouTubeDNN, trained / WEIGHTS_FILE, torch.device("cpu"))
    vectors = np.load(trained / VECTORS_FILE, allow_pickle=False)
    read = network.item_vectors(torch.arange(len(ids)) + 2).detach().numpy()
    assert read == pytest.approx(vectors, abs=1e-7)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_each_training_step_sees_what_serving_sees_at_that_time(trained: Path) -> None:
    network = load_network(YouTubeDNN, trained / WEIGHTS_FILE, torch.device("cpu"))
    users, history = torch.tensor([[30.0, 2.0]]), torch.tensor([[0, 0, 7, 5, 1, 9]])
    every = network.at_steps(users, history, torch.ones_like(history, dtype=torch.bool))
    for step in range(history.shape[1]):
        alone = network(users, history[:, : step + 1])[0]
        assert every[step].tolist() == pytest.approx(alone.tolist(), abs=1e-6)


def test_order_of_a_history_matters_and_items_beyond_max_history_do_not(
    handler: RecHandler, ids: list[str]
) -> None:
    length = handler.meta["hyperparameters"]["max_history"]
    recent = ids[:length]
    same, longer, swapped = embed(
        handler, recent, ids[-9:] + recent, [*recent[:-2], recent[-1], recent[-2]]
    )
    assert same == pytest.approx(longer, abs=1e-6)
    assert np.abs(same - swapped).max() > 0.01


def test_user_without_a_history_is_embedded_by_features(handler: RecHandler) -> None:
    empty, null = embed(handler, [], None)
    bare, absent, vector = np.array(predict(handler, [USER, {"user_features": USER}, [30, 2]]))
    for other in (null, bare, absent, vector):
        assert other == pytest.approx(empty, abs=1e-6)
    assert np.abs(np.array(predict(handler, {"user_age": 60})) - empty).max() > 0.01


def test_null_and_unknown_items_are_counted(handler: RecHandler, ids: list[str]) -> None:
    known, with_null, unknown = embed(handler, ids[:2], [*ids[:2], None], [ids[0], "?", 12])
    assert with_null == pytest.approx(known, abs=1e-6)
    assert np.isfinite(unknown).all()
    assert (handler.counts.missing[-1], handler.counts.out_of_vocabulary[-1]) == (1, 2)


def test_item_ids_may_be_numbers_or_strings(fit: Callable[..., Path], data: pd.DataFrame) -> None:
    numbered = data.assign(item_id=data["item_id"].str.removeprefix("item_").astype(int))
    folder = fit(numbered)
    some = [int(i) for i in json.loads((folder / IDS_FILE).read_text())[:3]]
    handler = load_handler("youtube_dnn", folder)
    numbers, text, floats = embed(handler, some, list(map(str, some)), list(map(float, some)))
    assert handler.counts.out_of_vocabulary.tolist() == [0, 0, 0]
    assert numbers.tolist() == pytest.approx(text.tolist(), abs=1e-6)
    assert numbers.tolist() == pytest.approx(floats.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({HISTORY_KEY: "item_1"}, f"data[1].{HISTORY_KEY}: expected a list, got"),
        ({HISTORY_KEY: ["item_1", True]}, f"data[1].{HISTORY_KEY}[1]: expected a string or a num"),
        ([30, 2, 1], "data[1]: expected 2 values (user_age, user_gender), got 3"),
        ({"user_features": 3}, "data[1].user_features: expected an object, got 3"),
        ({"user_features": {"user_age": "old"}}, "data[1].user_features.user_age: expected a num"),
    ],
)
def test_error_names_the_place_in_a_bad_row(handler: RecHandler, row: Any, message: str) -> None:
    [(status, body)], _ = handler.answer([json.dumps({"data": [USER, row]}).encode()])
    assert status == 400
    assert message in json.loads(body)["message"]


def learned(folder: Path) -> tuple[bytes, bytes, str]:
    """Return weights, item vectors and the name of their space."""
    weights, vectors = (folder / name for name in (WEIGHTS_FILE, VECTORS_FILE))
    return weights.read_bytes(), vectors.read_bytes(), artifacts.read_meta(folder)["space_id"]


def test_same_data_and_seed_give_the_same_space(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    first = learned(fit(data))
    assert learned(fit(data, version="v2")) == first
    for same_seed, other in zip(first, learned(fit(data, "--seed", "1")), strict=True):
        assert same_seed != other


def test_rows_are_sorted_by_the_time_column(fit: Callable[..., Path], data: pd.DataFrame) -> None:
    mixed = data.sample(frac=1, random_state=0)
    by_time = [
        learned(fit(table, "--time-column", "timestamp", version=version))
        for version, table in {"v1": data, "v2": mixed}.items()
    ]
    assert by_time[0] == by_time[1]


def test_sampled_softmax_learns_nearly_as_well_as_the_full_softmax(
    fit: Callable[..., Path],
) -> None:
    table = draw_sequences(n_users=1_000, seed=6)[0]
    found = {}
    for version, flags in {"full": [], "sampled": ["--full-softmax-items", "0"]}.items():
        hard = ["--epochs", "6", "--dropout", "0", "--sampled-items", "300", *flags]
        metrics = (fit(table, *hard, version=version) / "metrics.json").read_text()
        found[version] = json.loads(metrics)["test"]["youtube_dnn"]["hr_at_10"]
    assert found["full"] > 0.19  # popularity .11
    assert found["sampled"] > 0.85 * found["full"]


BAD_TABLES: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], list[str], str]] = [
    (lambda t: t.drop(columns="item_id"), [], "missing column item_id"),
    (lambda t: t, ["--user-col", "uid"], "missing column uid"),
    (lambda t: t.assign(user_age="old"), [], 'row 2, column user_age: expected a number, got "old'),
    (lambda t: t, ["--time-column", "user_id"], "column user_id: expected an ISO 8601 date"),
    (lambda t: t, ["--user-features", ""], "--user-features: expected a column or more"),
    (
        lambda t: t,
        ["--user-features", "user_features"],
        "request rows use that key for",
    ),
    (lambda t: t, ["--user-features", "user_id"], "user_id: is an id in this data; name it in"),
    (lambda t: t, ["--categorical", "colour"], "--categorical colour: expected names of"),
    (lambda t: t.drop_duplicates("user_id"), [], "expected 2 items or more that come 2 times"),
]


@pytest.mark.parametrize(("spoil", "flags", "message"), BAD_TABLES)
def test_bad_data_ends_the_run_before_training_starts(
    tmp_path: Path,
    data: pd.DataFrame,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    flags: list[str],
    message: str,
) -> None:
    path = tmp_path / "table.csv"
    spoil(data).to_csv(path, index=False)
    places = ["--data", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("youtube_dnn", *places, *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()
