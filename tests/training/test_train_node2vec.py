"""graph_recall: what a training run writes, and what its archive answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from handlers.graph_recall_handler import GraphRecallHandler
from handlers.models.graph_recall import VECTORS_FILE
from tests.examples import Example, load_handler, module, predict, request, train

[EXAMPLE] = module("graph_recall").EXAMPLES


@pytest.fixture
def handler(artifact_folder: Callable[[Example], Path]) -> GraphRecallHandler:
    loaded = load_handler("graph_recall", artifact_folder(EXAMPLE))
    assert isinstance(loaded, GraphRecallHandler)
    return loaded


def test_nearest_nodes_come_first_without_the_node_itself(handler: GraphRecallHandler) -> None:
    [answer] = predict(handler, {"user_id": "node_3", "top_k": 30})
    assert len(set(answer["item_ids"])) == 30
    assert "node_3" not in answer["item_ids"]
    assert answer["scores"] == sorted(answer["scores"], reverse=True)


def test_top_k_defaults_to_20_and_is_clamped(handler: GraphRecallHandler) -> None:
    sent: list[dict[str, Any]]
    sent = [{}, {"top_k": None}, {"top_k": 0}, {"top_k": -7}, {"top_k": 1e300}, {"top_k": 2.9}]
    answers = predict(handler, [{"user_id": "node_3", **row} for row in sent])
    n_others = len(handler.node_ids) - 1
    assert [len(a["item_ids"]) for a in answers] == [20, 20, 1, 1, min(500, n_others), 2]
    assert handler.counts.missing.tolist() == [0, 2]
    assert handler.counts.out_of_range.tolist() == [0, 3]


def test_unknown_and_missing_users_get_empty_lists_and_are_counted(
    handler: GraphRecallHandler,
) -> None:
    rows = [{"user_id": "nobody"}, {"user_id": 7}, {}, {"user_id": "node_3", "top_k": 1}]
    *empty, known = predict(handler, rows)
    assert empty == [{"item_ids": [], "scores": []}] * 3
    assert len(known["item_ids"]) == 1
    assert handler.counts.out_of_vocabulary.tolist() == [2, 0]
    assert handler.counts.missing.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_id": "a", "top_k": "5"}, 'data[0].top_k: expected a number, got "5"'),
        (
            {"user_id": "a", "top_k": True},
            "data[0].top_k: expected a number, got true; send 1 for true, 0 for false",
        ),
        ({"user_id": ["a"]}, 'data[0].user_id: expected a string or a number, got ["a"]'),
    ],
)
def test_error_states_what_a_bad_row_should_hold(
    handler: GraphRecallHandler, row: dict[str, Any], message: str
) -> None:
    [(status, body)], _ = handler.answer([request([row])])
    assert (status, orjson.loads(body)["message"]) == (400, message)


def run(tmp_path: Path, version: str, *flags: str) -> Path:
    quick = ["--epochs", "1", "--num-walks", "5", "--dim", "8", "--test-share", "0.2"]
    places = ["--artifacts-dir", str(tmp_path / "artifacts"), "--version", version]
    assert train("graph_recall", *quick, *places, *flags) == 0
    return tmp_path / "artifacts" / "graph_recall" / version


def test_nodes_of_a_weighted_graph_are_found_by_number_or_string(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(60, size=800)
    item = rng.integers(10, size=800) * 3 + user % 3
    edges = {"source": user, "target": 1000 + item, "weight": rng.uniform(0.5, 2, 800)}
    pd.DataFrame(edges).to_parquet(tmp_path / "log.parquet")
    folder = run(tmp_path, "v1", "--edges", str(tmp_path / "log.parquet"), "--p", ".5", "--q", "2")
    answers = predict(
        load_handler("graph_recall", folder),
        [{"user_id": user_id, "top_k": 5} for user_id in (7, 7.0, "7")],
    )
    assert len(answers[0]["item_ids"]) == 5
    assert answers == [answers[0]] * 3
    reports = json.loads((folder / "metrics.json").read_text())["test"]
    assert reports["graph_recall"]["link_auc"] > 0.6


def test_same_edges_and_seed_give_the_same_vectors(
    tmp_path: Path, data_folder: Callable[[Example], Path]
) -> None:
    edges = ["--edges", str(data_folder(EXAMPLE))]
    first, again, other, directed = (
        (run(tmp_path, version, *edges, *flags) / VECTORS_FILE).read_bytes()
        for version, flags in (
            ("v1", []),
            ("v2", []),
            ("v3", ["--seed", "1"]),
            ("v4", ["--directed"]),
        )
    )
    assert first == again
    assert len({first, other, directed}) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--walk-length", "1"], "error: --walk-length 1: expected 2 or more"),
        (["--test-share", "1"], "error: --test-share 1.0: expected 0.001 to 0.999"),
        (["--edges", "nowhere.csv"], "error: nowhere.csv: no such file"),
    ],
)
def test_error_names_the_bad_flag(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("graph_recall", *flags) == 1
    assert message in capsys.readouterr().err
