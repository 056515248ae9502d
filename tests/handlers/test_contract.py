"""The contract of every model's handler, tested without TorchServe.

A new model takes part through its file in ``tests/examples``.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from archive import catalog
from handlers.base import CHUNK_ROWS, RecHandler
from handlers.counts import FeatureCounts
from handlers.errors import ArchiveError, RowError
from handlers.feature_rows import FeatureRowsHandler
from serving.testing import numbers
from tests.examples import Example, close, load_handler, model_names, module, predict, request

BAD_BODIES = [
    (400, b"not JSON"),
    (400, b'{"data": []}'),
    (400, b'{"data": [true]}'),
    (400, None),
    (400, gzip.compress(b'{"data": [{}]}', mtime=0)),
    (400, b'\xef\xbb\xbf{"data": [{}]}'),
    (400, b'{"data": [{"no such key": 1}]}'),
]


@pytest.fixture
def folder(example: Example, artifact_folder: Callable[[Example], Path]) -> Path:
    return artifact_folder(example)


@pytest.fixture
def handler(example: Example, folder: Path) -> RecHandler:
    return load_handler(example.model, folder)


def served(responses: Iterable[tuple[int, bytes]]) -> list[Any]:
    """Return the predictions of responses, all of which must have status 200."""
    statuses, bodies = zip(*responses, strict=True)
    assert set(statuses) == {200}, bodies
    return [orjson.loads(body)["predictions"] for body in bodies]


def test_every_model_has_an_example() -> None:
    assert model_names() == catalog.model_names()


def test_tiny_training_nears_the_ceiling(example: Example, folder: Path) -> None:
    reports = json.loads((folder / "metrics.json").read_text())["test"]
    report = reports[folder.parent.name]
    assert {m: v for m, v in example.reaches.items() if report[m] < v} == {}, report


def test_served_equals_offline(example: Example, handler: RecHandler, folder: Path) -> None:
    offline = example.offline(folder, example.rows)
    assert len(set(map(str, offline))) > len(offline) / 2
    assert dict(numbers(predict(handler, example.rows))) == close(offline)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_predicts_the_golden_rows(example: Example, handler: RecHandler, folder: Path) -> None:
    handler.load(folder, handler.config, torch.device("cuda"))
    handler.replay_golden_rows(folder / catalog.get(example.model).golden_file)


def test_n_rows_get_n_predictions_in_order(example: Example, handler: RecHandler) -> None:
    forwards = predict(handler, example.rows)
    backwards = predict(handler, example.rows[::-1])
    assert len(forwards) == len(example.rows)
    assert dict(numbers(backwards)) == close(forwards[::-1])


def test_batch_of_requests_equals_each_request_alone(example: Example, handler: RecHandler) -> None:
    bodies = [
        request(example.rows[start:stop]) for start, stop in [(0, 1), (1, 4), (4, 5), (5, 10)]
    ]
    together, n_rows = handler.answer(bodies)
    alone = [response for body in bodies for response in handler.answer([body])[0]]
    assert n_rows == 10
    assert dict(numbers(served(together))) == close(served(alone))


def test_score_ignores_its_batchmates(example: Example, handler: RecHandler) -> None:
    row = example.rows[0]
    alone = predict(handler, [row, row])[0]
    for mates in (example.rows[1:], example.rows[5:7] * 20):
        assert dict(numbers(predict(handler, [row, *mates])[0])) == close(alone)


def test_more_rows_than_one_chunk_keep_their_order(example: Example, handler: RecHandler) -> None:
    n = len(example.rows)
    copies = CHUNK_ROWS // n + 1
    predictions = predict(handler, example.rows * copies)
    assert len(predictions) == n * copies > CHUNK_ROWS
    assert dict(numbers(predictions[-n:])) == close(predictions[:n])


def test_sample_request_works(
    example: Example, handler: RecHandler, archive_file: Callable[[Example], Path]
) -> None:
    with zipfile.ZipFile(archive_file(example)) as archive:
        sample = archive.read("sample_request.json")
    [(status, body)], n_rows = handler.answer([sample])
    assert status == 200
    assert n_rows > 0
    assert "predictions" in orjson.loads(body)


def test_single_object_stands_for_a_list_of_one(example: Example, handler: RecHandler) -> None:
    for row in example.rows[:10]:
        assert predict(handler, row) == predict(handler, [row])


def test_vector_equals_the_object_of_its_values(example: Example, handler: RecHandler) -> None:
    if not isinstance(handler, FeatureRowsHandler):
        pytest.skip(f"a row of {example.model} is not a vector of features")
    vectors = [[row.get(name) for name in handler.feature_names] for row in example.rows]
    assert predict(handler, vectors) == predict(handler, example.rows)
    mixed = [vectors[0], example.rows[1]]
    assert predict(handler, mixed) == predict(handler, example.rows[:2])


def test_bad_request_leaves_batchmates_unaffected(example: Example, handler: RecHandler) -> None:
    good = [request([row]) for row in example.rows[: len(BAD_BODIES) + 1]]
    expected = served(handler.answer(good)[0])
    mixed: list[Any] = [good[0]]
    for (_, bad), body in zip(BAD_BODIES, good[1:], strict=True):
        mixed += [bad, body]
    responses, n_rows = handler.answer(mixed)
    assert dict(numbers(served(responses[0::2]))) == close(expected)
    assert n_rows == len(good)
    for (status, body), (expected_status, _) in zip(responses[1::2], BAD_BODIES, strict=True):
        error = json.loads(body)
        assert (status, error["code"], error["type"]) == (expected_status, status, "InvalidRequest")
        assert "expected" in error["message"]


def test_request_that_cannot_be_scored_leaves_batchmates_unaffected(
    example: Example, handler: RecHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [request([row]) for row in example.rows[:3]]
    expected = served(handler.answer(bodies)[0])
    [poison] = handler.decoder.decode(bodies[1])
    score = handler.predict

    def predict_all_but_poison(rows: list[Any]) -> Any:
        if poison in rows:
            raise MemoryError
        return score(rows)

    monkeypatch.setattr(handler, "predict", predict_all_but_poison)
    responses, n_rows = handler.answer(bodies)
    assert dict(numbers(served(responses[0::2]))) == close(expected[0::2])
    status, body = responses[1]
    assert status == 500
    assert orjson.loads(body) == {
        "code": 500,
        "type": "ScoringFailed",
        "message": "scoring failed: MemoryError; see the log",
    }
    assert n_rows == 2


def test_row_that_cannot_be_used_is_named_to_its_own_caller(
    example: Example, handler: RecHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = handler.feature_names[0]
    bodies = [request([row]) for row in example.rows[:3]]
    expected = served(handler.answer(bodies)[0])
    [poison] = handler.decoder.decode(bodies[1])
    many = [example.rows[0]] * CHUNK_ROWS
    score = handler.predict

    def predict_all_but_poison(rows: list[Any]) -> Any:
        predictions = score(rows)
        if poison in rows:
            raise RowError(rows.index(poison), feature, "expected better")
        return predictions

    monkeypatch.setattr(handler, "predict", predict_all_but_poison)
    failures: list[Any] = []
    responses, n_rows = handler.answer(
        [*bodies, request([*many, example.rows[1]])], lambda *failure: failures.append(failure)
    )
    assert dict(numbers(served(responses[0:3:2]))) == close(expected[0::2])
    assert (n_rows, failures) == (2, [])
    for (status, body), i in zip(responses[1::2], (0, CHUNK_ROWS), strict=True):
        error = json.loads(body)
        assert (status, error["code"], error["type"]) == (400, 400, "InvalidRequest")
        assert error["message"].startswith(f"data[{i}].")
        assert error["message"].endswith(f"{feature}: expected better")


@pytest.mark.parametrize("share", [True, "all", -0.1, 1.5, math.nan, [1], None])
def test_invalid_share_of_unknown_keys_is_refused(
    artifact_folder: Callable[[Example], Path], share: Any
) -> None:
    [example, *_] = module("xgb").EXAMPLES
    folder = artifact_folder(example)
    handler = load_handler(example.model, folder)
    expected = f"max_unknown_share: expected a number from 0 to 1, got {re.escape(str(share))}"
    with pytest.raises(ArchiveError, match=expected):
        handler.load(folder, {**handler.config, "max_unknown_share": share})


def test_configured_share_of_unknown_keys_is_the_limit(
    example: Example, handler: RecHandler, folder: Path
) -> None:
    known = handler.feature_names[0]
    body = request([{known: None, "a": 1, "b": 2}])
    assert handler.answer([body])[0][0][0] == 200
    handler.load(folder, {**handler.config, "max_unknown_share": 0.5})
    [(status, answer)], _ = handler.answer([body])
    assert status == 400
    message = json.loads(answer)["message"]
    assert "got 2 unknown of 3 keys (max_unknown_share: 0.5): a, b" in message
    assert known in message


def test_batch_that_is_scored_twice_is_counted_once(
    example: Example, handler: RecHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [request([row]) for row in example.rows[:10]]
    handler.answer(bodies[1:])
    expected, unknown = asdict(handler.counts.copy()), dict(handler.decoder.unknown)
    assert sum(map(np.sum, expected.values())) > 0

    [poison] = handler.decoder.decode(bodies[0])
    score = handler.predict

    def predict_then_fail(rows: list[Any]) -> Any:
        predictions = score(rows)
        if poison in rows:
            raise MemoryError
        return predictions

    monkeypatch.setattr(handler, "predict", predict_then_fail)
    handler.counts.restore(FeatureCounts.zeros(len(handler.feature_names)))
    handler.decoder.unknown.clear()
    handler.answer(bodies)
    np.testing.assert_equal(asdict(handler.counts), expected)
    assert handler.decoder.unknown == unknown


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_prediction_that_is_not_finite_fails_only_its_own_request(
    example: Example, handler: RecHandler, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    bodies = [request([row]) for row in example.rows[:3]]
    expected = served(handler.answer(bodies)[0])
    [poison] = handler.decoder.decode(bodies[1])
    score = handler.predict

    def predict_not_finite(rows: list[Any]) -> Any:
        predictions = score(rows)
        if isinstance(predictions, list):
            return [
                {"scores": [0.5, value]} if row == poison else prediction
                for row, prediction in zip(rows, predictions, strict=True)
            ]
        predictions = np.array(predictions)
        predictions[[row == poison for row in rows]] = value
        return predictions

    monkeypatch.setattr(handler, "predict", predict_not_finite)
    responses, _ = handler.answer(bodies)
    assert dict(numbers(served(responses[0::2]))) == close(expected[0::2])
    assert responses[1][0] == 500
    assert b"FloatingPointError" in responses[1][1]


def test_only_requests_with_too_many_rows_are_refused(
    example: Example, handler: RecHandler
) -> None:
    rows = [example.rows[0]] * 10_001
    [(status, body), (allowed, _)], _ = handler.answer([request(rows), request(rows[1:])])
    assert allowed == 200
    assert status == 413
    assert orjson.loads(body) == {
        "code": 413,
        "type": "TooManyRows",
        "message": "data: expected at most 10000 rows, got 10001; split them",
    }
