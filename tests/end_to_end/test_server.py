"""The models end to end: real TorchServe, real archives, many concurrent callers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from serving.testing import Server, make_archive, numbers
from tests.conftest import register
from tests.examples import Example, close, examples, model_names, module
from tests.examples.ranking import impression_rows

RECOVERY_TIMEOUT_S = 30.0
CALLERS = 32

SLOW_HANDLER = """
import time

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep(0.5)
        return ["{}"] * len(data)
"""


def predict(server: Server, path: str, data: Any) -> Any:
    url = f"{server.inference_url}/predictions/{path}"
    answer = requests.post(url, json={"data": data}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def workers(server: Server, model: str) -> list[dict[str, Any]]:
    """Return the workers of a model's default version, as the management API lists them."""
    [described] = requests.get(f"{server.management_url}/models/{model}", timeout=10).json()
    found: list[dict[str, Any]] = described["workers"]
    return found


@pytest.mark.parametrize("example", examples(), ids=str)
def test_each_version_is_served_under_its_path(
    server: Server, example: Example, artifact_folder: Callable[[Example], Path]
) -> None:
    expected = close(example.offline(artifact_folder(example), example.rows))
    answer = predict(server, f"{example.model}/{example.version}", example.rows)
    assert dict(numbers(answer)) == expected


def test_version_in_the_query_string_is_ignored(server: Server) -> None:
    default, other = module("xgb").EXAMPLES
    rows: list[Any] = [{}] * 3  # the versions have no feature in common
    plain = predict(server, "xgb", rows)
    assert predict(server, f"xgb?version={other.version}", rows) == plain
    assert predict(server, "xgb?version=no-such", rows) == plain
    assert predict(server, f"xgb/{default.version}", rows) == plain
    assert predict(server, f"xgb/{other.version}", rows) != plain


@pytest.mark.parametrize("example", examples(), ids=str)
def test_describe_returns_the_signature(server: Server, example: Example) -> None:
    url = f"{server.management_url}/models/{example.model}/{example.version}"
    [described] = requests.get(url, params={"customized": "true"}, timeout=30).json()
    signature = described["customizedMetadata"]
    assert signature["model_name"] == example.model
    assert signature["model_version"] == example.version
    assert [feature["name"] for feature in signature["features"]]
    assert set(signature["libraries"]) >= {"python", "torch", "numpy"}
    assert "golden.json" in signature["files"]


def test_answer_is_compact_json(server: Server) -> None:
    url = f"{server.inference_url}/predictions/xgb"
    answer = requests.post(url, json={"data": [{}, {}]}, timeout=30)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.text.startswith('{"predictions":[0.')
    assert " " not in answer.text


@pytest.mark.parametrize("model", model_names())
def test_every_concurrent_caller_gets_its_own_answer(
    server: Server, model: str, artifact_folder: Callable[[Example], Path]
) -> None:
    """Good and bad requests share batches; each response shows the content of its request."""
    [example, *_] = module(model).EXAMPLES
    rows = example.rows
    offline = example.offline(artifact_folder(example), rows)
    url = f"{server.inference_url}/predictions/{model}"

    def call(i: int) -> None:
        mine = [(i + k) % len(rows) for k in range(2 + i % 3)]
        if i % 4 == 0:
            answer = session.post(url, json={"data": [f"caller {i}"]}, timeout=30)
            assert answer.status_code == 400
            assert f'"caller {i}"' in answer.json()["message"]
            return
        answer = session.post(url, json={"data": [rows[r] for r in mine]}, timeout=30)
        assert answer.status_code == 200, answer.text
        expected = close([offline[r] for r in mine])
        assert dict(numbers(answer.json()["predictions"])) == expected

    with requests.Session() as session, ThreadPoolExecutor(CALLERS) as pool:
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=CALLERS))
        list(pool.map(call, range(20 * CALLERS)))


def test_both_workers_are_used(server: Server) -> None:
    processes = [psutil.Process(worker["pid"]) for worker in workers(server, "xgb")]
    assert len(processes) == 2
    before = [sum(process.cpu_times()[:2]) for process in processes]
    rows = impression_rows() * 50
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: predict(server, "xgb", rows), range(60)))
    spent = [
        sum(process.cpu_times()[:2]) - start
        for process, start in zip(processes, before, strict=True)
    ]
    assert min(spent) > 0.1 * max(spent) > 0


@contextmanager
def steady_load(server: Server, model: str, callers: int) -> Iterator[list[int]]:
    """Keep calling a model while the block runs; yields the statuses so far."""
    statuses: list[int] = []
    stop = threading.Event()
    url = f"{server.inference_url}/predictions/{model}"

    def call() -> None:
        while not stop.is_set():
            statuses.append(requests.post(url, json={"data": [{}]}, timeout=60).status_code)

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(call) for _ in range(callers)]
        try:
            yield statuses
        finally:
            stop.set()
    for future in futures:
        future.result()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_worker_killed_under_load_recovers_and_only_its_batch_fails(server: Server) -> None:
    callers = 8
    killed = workers(server, "xgb")[0]["pid"]
    with steady_load(server, "xgb", callers) as statuses:
        wait_for(lambda: len(statuses) > 100)
        assert set(statuses) == {200}
        os.kill(killed, signal.SIGKILL)
        at_death = len(statuses)
        wait_for(lambda: len(statuses) > at_death + 100)
        wait_for(
            lambda: (
                [w["status"] for w in workers(server, "xgb")] == ["READY"] * 2
                and killed not in {w["pid"] for w in workers(server, "xgb")}
            )
        )
        recovered = len(statuses)
        wait_for(lambda: len(statuses) > recovered + 100)
        assert set(statuses[recovered + callers :]) == {200}
    failed = [status for status in statuses if status != 200]
    assert len(failed) <= callers
    assert set(failed) <= {500, 507}  # TorchServe's "Worker died." comes as either


def test_full_queue_gets_torchserves_own_503(server: Server) -> None:
    store = Path(server.env["MODEL_STORE"])
    config = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\nmaxBatchDelay: 1\njobQueueSize: 1\n"
    mar = make_archive(store, "slow", SLOW_HANDLER, config=config)
    register(server, mar).raise_for_status()
    url = f"{server.inference_url}/predictions/slow"
    try:
        with ThreadPoolExecutor(6) as pool:
            calls = [pool.submit(requests.post, url, json={}, timeout=30) for _ in range(6)]
            answers = [call.result() for call in calls]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < len(answers)
        assert {answer.json()["type"] for answer in refused} == {"ServiceUnavailableException"}
        assert {answer.json()["code"] for answer in refused} == {503}
    finally:
        requests.delete(f"{server.management_url}/models/slow/1.0", timeout=30)
        mar.unlink()
