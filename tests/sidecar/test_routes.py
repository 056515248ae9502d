"""The sidecar's routes with real TorchServe and stand-ins for the models."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
import schemathesis
from hypothesis import given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving import sidecar_process
from serving.client import TorchServe
from serving.ports import free_ports
from serving.rollout import Rollout, roll_out
from serving.settings import ServeError, Settings, SidecarSettings
from serving.testing import ROOT, Server, make_archive, running_server, wait_until
from tests.conftest import lacking

START_TIMEOUT_S = 30.0
BROWSER_TIMEOUT_S, LOAD_TIMEOUT_S = 60.0, 10.0
EMBEDDING = [0.25, -0.5, 1.0]

# Answers a row as the models do. `sleep_s` makes it slow, `refuse` refuses it.
STAND_IN = """
import json
import logging
import time

class Handler:
    def initialize(self, context):
        logging.getLogger().setLevel(logging.WARNING)
        self.context = context

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [json.dumps({{"features": {features}}}).encode()]
        return [self.answer(i, json.loads(row["body"])["data"]) for i, row in enumerate(data)]

    def answer(self, i, rows):
        self.context.set_response_content_type(i, "application/json")
        text = json.dumps(rows)
        if "sleep_s" in text:
            time.sleep(0.8)
        if "refuse" in text or not all(isinstance(row, dict) for row in rows):
            self.context.set_response_status(400, "Bad Request", i)
            message = "{refusal}: expected a number, got \\"abc\\""
            answer = {{"code": 400, "type": "InvalidRequest", "message": message}}
            return json.dumps(answer).encode()
        return json.dumps({{"predictions": {predictions}}}).encode()
"""
FEATURES = [
    {"name": "item_ctr", "kind": "number", "sent_as": "number", "default": 0, "train_range": [0, 1]}
]
RECALLED = """[
    {"item_ids": [], "scores": []} if row["user_id"] == "nobody" else
    {"item_ids": [f"item_{i}" for i in range(row["top_k"])], "scores": [0.5] * row["top_k"]}
    for row in rows]"""
STAND_INS = {
    "dssm": (
        f"{EMBEDDING} if rows[0].keys() == {{'query_features'}} else 1",
        "query_features.refuse",
    ),
    "youtube_dnn": (
        f"{EMBEDDING} + [len(rows[0].get('history_item_ids', []))]",
        "user_features.refuse",
    ),
    "item_tower": (f"{EMBEDDING}", "refuse"),
    "graph_recall": (RECALLED, "user_id"),
    "xgb": ("[row.get('item_ctr', 0.5) for row in rows]", "refuse"),
}


def stand_in(model: str) -> str:
    predictions, refused = STAND_INS[model]
    refusal = f"data[0].{refused}"
    return STAND_IN.format(predictions=predictions, refusal=refusal, features=FEATURES)


@dataclass(frozen=True)
class Sidecar:
    """A further sidecar of a server.

    Attributes:
        url: Base URL of its routes.
        process: Process of the sidecar.
        log: File with its output.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def line(self, request_id: str) -> dict[str, Any]:
        """Return its log line about a request; it is written after the response."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            lines = map(json.loads, self.log.read_text().splitlines())
            found[:] = [line for line in lines if line.get("request_id") == request_id]
            return bool(found)

        wait_until(written, 5)
        [line] = found
        return line


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("model-store")
    for model in STAND_INS:
        make_archive(store, model, stand_in(model))
    with running_server(store, RELOAD_API_KEY="secret") as running:
        yield running


@contextmanager
def another_sidecar(server: Server, folder: Path, **env: str) -> Iterator[Sidecar]:
    """Run a further sidecar of a server, with its own settings."""
    [port] = free_ports(1)
    log = folder / "sidecar.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar"],
            cwd=ROOT,
            stderr=output,
            env=os.environ
            | {
                "SIDECAR_PORT": str(port),
                "SIDECAR_INFERENCE_URL": server.inference_url,
                "SIDECAR_MANAGEMENT_URL": server.management_url,
                "SIDECAR_MODEL_STORE": server.env["MODEL_STORE"],
            }
            | env,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/openapi.json"), START_TIMEOUT_S)
        yield Sidecar(url, process, log)
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def post(url: str, body: object, **headers: str) -> requests.Response:
    """Post JSON; bytes are sent unchanged."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | headers
    return requests.post(url, data, headers=headers, timeout=30)


@pytest.mark.parametrize(
    ("route", "body", "answer"),
    [
        ("query_embedding", {"query_features": {"a": 1}}, {"query_embedding": EMBEDDING}),
        ("query_embedding", {"query_features": {}}, {"query_embedding": EMBEDDING}),
        (
            "user_embedding",
            {"user_features": {"a": 1}, "history_item_ids": ["x", 7]},
            {"user_embedding": [*EMBEDDING, 2]},
        ),
        ("user_embedding", {"user_features": {}}, {"user_embedding": [*EMBEDDING, 0]}),
        (  # a nil slice of Go
            "user_embedding",
            {"user_features": {}, "history_item_ids": None},
            {"user_embedding": [*EMBEDDING, 0]},
        ),
        ("item_embedding", {"item_features": {"a": 1}}, {"item_embedding": EMBEDDING}),
        (
            "recall",
            {"user_id": "u", "top_k": 2},
            {"item_ids": ["item_0", "item_1"], "scores": [0.5, 0.5]},
        ),
        ("recall", {"user_id": "nobody"}, {"item_ids": [], "scores": []}),
        (
            "predict",
            {"features_list": [{"item_ctr": 0.1}, {"item_ctr": 0.2}]},
            {"scores": [0.1, 0.2], "predictions": [0.1, 0.2]},
        ),
        ("predict", {"data": [{"item_ctr": 0.1}]}, {"scores": [0.1], "predictions": [0.1]}),
    ],
)
def test_route_translates_to_the_models_prediction(
    server: Server, route: str, body: object, answer: object
) -> None:
    response = post(f"{server.sidecar_url}/{route}", body)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == answer


@pytest.mark.parametrize(
    ("asked", "got"),
    [({}, 20), ({"top_k": None}, 20), ({"top_k": 0}, 1), ({"top_k": -5}, 1), ({"top_k": 501}, 500)],
)
def test_top_k_is_20_by_default_and_clamped(
    server: Server, asked: dict[str, int | None], got: int
) -> None:
    found = post(f"{server.sidecar_url}/recall", {"user_id": "u", **asked}).json()
    assert len(found["item_ids"]) == len(found["scores"]) == got


NESTED = b'{"query_features": {"a": %b}}' % (b"[" * 5_000 + b"]" * 5_000)


@pytest.mark.parametrize(
    ("route", "body", "detail"),
    [
        ("recall", b"", "body: expected an object, got none"),
        ("recall", b"{", "body: expected JSON, got: Input data was truncated"),
        ("recall", b"[1]", "body: expected an object, got a list"),
        ("recall", b"{}", "user_id: expected it in the body, got none"),
        ("recall", {"user_id": None}, "user_id: expected a string or a number, got null"),
        ("recall", {"user_id": [1]}, "user_id: expected a string or a number, got a list"),
        ("recall", {"user_id": "u", "top_k": 2.5}, "top_k: expected an integer, got 2.5"),
        ("recall", {"user_id": "u", "top_k": "2"}, 'top_k: expected an integer, got "2"'),
        ("recall", {"user_id": "refuse"}, 'user_id: expected a number, got "abc"'),
        ("query_embedding", {"query_features": 5}, "query_features: expected an object, got 5"),
        (
            "query_embedding",
            {"query_features": {"refuse": "abc"}},
            'query_features.refuse: expected a number, got "abc"',
        ),
        (
            "query_embedding",
            b'{"query_features": {"a": NaN}}',
            "body: expected JSON, got: JSON is malformed: invalid character (byte 25)",
        ),
        (
            "query_embedding",
            NESTED,
            "body: expected JSON, got: maximum recursion depth exceeded while deserializing an "
            "object",
        ),
        (
            "user_embedding",
            {"user_features": {}, "history_item_ids": ["x", {}]},
            "history_item_ids[1]: expected a string or a number, got an object",
        ),
        (
            "user_embedding",
            {"user_features": {"refuse": "abc"}},
            'user_features.refuse: expected a number, got "abc"',
        ),
        (
            "item_embedding",
            {"item_features": {"refuse": "abc"}},
            'item_features.refuse: expected a number, got "abc"',
        ),
        ("predict", {}, "features_list: expected it (or data) in the body, got neither"),
        ("predict", {"data": 5}, "data: expected a list, got 5"),
        ("predict", {"data": ["refuse"]}, 'data[0].refuse: expected a number, got "abc"'),
        (
            "predict",
            {"features_list": ["refuse"]},
            'features_list[0].refuse: expected a number, got "abc"',
        ),
    ],
)
def test_bad_input_gets_400_that_names_field_expected_and_got(
    server: Server, route: str, body: object, detail: str
) -> None:
    response = post(f"{server.sidecar_url}/{route}", body)
    assert (response.status_code, response.json()) == (400, {"detail": detail})


def test_form_gets_400_that_names_the_content_type(server: Server) -> None:
    response = requests.post(f"{server.sidecar_url}/recall", {"user_id": "u"}, timeout=10)
    assert response.status_code == 400
    assert response.json()["detail"].endswith("send Content-Type: application/json")


def test_body_of_8_mb_that_is_larger_for_torchserve_gets_413(server: Server) -> None:
    body = b'{"query_features":{"a":"%b"}}' % (b"x" * ((8 << 20) - 27))
    assert len(body) == 8 << 20
    response = post(f"{server.sidecar_url}/query_embedding", body)
    assert response.status_code == 413
    assert response.json()["detail"].startswith("body: expected at most 8388608 bytes, got 83886")


def test_reload_without_torchserve_fails_for_each_model() -> None:
    async def down() -> Rollout:
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        async with TorchServe(url, url, None, 1.0) as torchserve:
            return await roll_out(torchserve, Path("xgb.mar"))

    rollout = asyncio.run(down())
    assert (rollout.old, rollout.new, rollout.outcome) == (None, None, "failed")
    assert "TorchServe is unreachable" in str(rollout.error)


def test_unknown_route_and_method_get_a_detail(server: Server) -> None:
    assert requests.get(f"{server.sidecar_url}/nowhere", timeout=10).json()["detail"]
    assert requests.get(f"{server.sidecar_url}/recall", timeout=10).status_code == 405


def test_bad_requests_leave_the_others_unaffected(server: Server) -> None:
    url = f"{server.sidecar_url}/query_embedding"
    bodies = [{"query_features": {"refuse": 1} if i % 2 else {}} for i in range(200)]
    with ThreadPoolExecutor(16) as callers:
        statuses = [r.status_code for r in callers.map(lambda body: post(url, body), bodies)]
    assert statuses == [200, 400] * 100


def test_request_id_is_echoed_or_made_and_stands_in_the_log(server: Server, tmp_path: Path) -> None:
    with another_sidecar(server, tmp_path) as sidecar:
        echoed = post(f"{sidecar.url}/recall", {"user_id": None}, **{"X-Request-ID": "abc-1"})
        assert echoed.headers["X-Request-ID"] == "abc-1"
        made = post(f"{sidecar.url}/recall", {"user_id": "u"}).headers["X-Request-ID"]
        assert re.fullmatch("[0-9a-f]{32}", made)

        line = sidecar.line("abc-1")
        assert (line["method"], line["path"], line["status"]) == ("POST", "/recall", 400)
        assert line["detail"] == "user_id: expected a string or a number, got null"
        line = sidecar.line(made)
        assert line["status"] == 200
        assert 0 < line["latency_ms"] < 10_000


def test_metrics_count_requests_by_route_and_status(server: Server) -> None:
    post(f"{server.sidecar_url}/item_embedding", {"item_features": {}})
    requests.get(f"{server.sidecar_url}/made/up", timeout=10)
    text = requests.get(f"{server.sidecar_url}/metrics", timeout=10).text
    for series in (
        r'sidecar_requests_total{route="/item_embedding",status="200"} \d',
        r'sidecar_requests_total{route="unknown",status="404"} \d',
        r'sidecar_latency_seconds_bucket{le="0.005",route="/item_embedding"} \d',
        r'sidecar_model_ready_workers{default="true",model="dssm",version="1.0"} 1.0',
    ):
        assert re.search(series, text), series
    assert "/made/up" not in text


def test_ping_and_health_name_a_model_without_workers(server: Server) -> None:
    for route in ("ping", "health"):
        response = requests.get(f"{server.sidecar_url}/{route}", timeout=10)
        assert (response.status_code, response.json()) == (200, {"status": "Healthy"})

    scale = partial(requests.put, f"{server.management_url}/models/item_tower", timeout=30)
    scale(params={"min_worker": "0", "synchronous": "true"}).raise_for_status()
    for route in ("ping", "health"):
        response = requests.get(f"{server.sidecar_url}/{route}", timeout=10)
        assert response.status_code == 503
        assert response.json() == {"detail": "not ready: item_tower: 0/0 READY"}
    assert post(f"{server.sidecar_url}/item_embedding", {"item_features": {}}).status_code == 503
    scale(params={"min_worker": "1", "synchronous": "true"}).raise_for_status()
    wait_until(lambda: answers(f"{server.sidecar_url}/health"), 10)


def test_model_that_is_not_loaded_gets_503_on_its_route_only(
    server: Server, tmp_path: Path
) -> None:
    with another_sidecar(server, tmp_path, SIDECAR_MODELS="dssm,absent") as sidecar:
        assert answers(f"{sidecar.url}/ping")
        response = requests.get(f"{sidecar.url}/health", timeout=10)
        assert response.status_code == 503
        assert response.json() == {"detail": "not ready: absent: not loaded"}
        response = post(f"{sidecar.url}/try/absent", {"data": []})
        assert response.status_code == 404


def test_slow_model_gets_504(server: Server, tmp_path: Path) -> None:
    with another_sidecar(server, tmp_path, SIDECAR_TIMEOUT_S="0.3") as sidecar:
        response = post(f"{sidecar.url}/query_embedding", {"query_features": {"sleep_s": 1}})
        assert response.status_code == 504
        assert "expected an answer within 0.3 s, got none" in response.json()["detail"]


def test_sigterm_finishes_requests_in_flight(server: Server, tmp_path: Path) -> None:
    with another_sidecar(server, tmp_path) as sidecar, ThreadPoolExecutor() as callers:
        body = {"query_features": {"sleep_s": 1}}
        in_flight = [callers.submit(post, f"{sidecar.url}/query_embedding", body) for _ in "123"]
        time.sleep(0.3)
        sidecar.process.terminate()
        assert [call.result().status_code for call in in_flight] == [200, 200, 200]
        sidecar.process.wait(timeout=5)


def test_killed_torchserve_means_503_until_it_is_back(tmp_path: Path) -> None:
    make_archive(tmp_path, "dssm", stand_in("dssm"))
    with running_server(tmp_path, TOKEN_AUTH="1") as server:
        key_file = str(server.run_folder / "key_file.json")
        with another_sidecar(server, tmp_path, SIDECAR_KEY_FILE=key_file) as sidecar:

            def status() -> int:
                return post(f"{sidecar.url}/query_embedding", {"query_features": {}}).status_code

            assert status() == 200
            assert answers(f"{sidecar.url}/health")
            server.process.kill()
            wait_until(lambda: status() == 503, 5)
            for route in ("ping", "health", ""):
                assert requests.get(f"{sidecar.url}/{route}", timeout=10).status_code == 503
            assert answers(f"{sidecar.url}/metrics")
            with running_server(tmp_path, **server.env):  # with other tokens
                assert status() == 200
                assert answers(f"{sidecar.url}/ping")


def test_reload_replaces_a_version_without_losing_a_request(server: Server, tmp_path: Path) -> None:
    store = Path(server.env["MODEL_STORE"])
    with another_sidecar(
        server, tmp_path, SIDECAR_MODELS="reloaded", RELOAD_API_KEY="secret"
    ) as sidecar:

        def reload() -> tuple[int, dict[str, Any]]:
            response = post(f"{sidecar.url}/reload", b"", **{"X-API-Key": "secret"})
            return response.status_code, response.json()["models"]["reloaded"]

        for headers in ({}, {"X-API-Key": "wrong"}):
            assert post(f"{sidecar.url}/reload", b"", **headers).status_code == 401

        make_archive(store, "reloaded", stand_in("item_tower"))
        assert reload() == (200, {"old": None, "new": "1.0", "error": None})
        assert reload() == (200, {"old": "1.0", "new": "1.0", "error": None})

        make_archive(store, "reloaded", stand_in("item_tower"), version="2.0")
        statuses: set[int] = set()
        done = threading.Event()

        def call() -> None:
            while not done.is_set():
                statuses.add(post(f"{sidecar.url}/try/reloaded", {"data": [{}]}).status_code)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            assert reload() == (200, {"old": "1.0", "new": "2.0", "error": None})
        finally:
            done.set()
            caller.join()
        assert statuses == {200}
        assert served_versions(server) == ["2.0"]

        archive = make_archive(store, "reloaded", stand_in("item_tower"), version="3.0")
        archive.write_bytes(archive.read_bytes().replace(b"0.25", b"0.75"))
        status, outcome = reload()
        assert (status, outcome["old"], outcome["new"]) == (500, "2.0", "2.0")
        assert "reloaded.mar: not a readable archive" in outcome["error"]

        dying = stand_in("item_tower").replace("logging.getLogger()", "1 / 0; logging.getLogger()")
        make_archive(store, "reloaded", dying, version="4.0")
        status, outcome = reload()
        assert (status, outcome["old"], outcome["new"]) == (500, "2.0", "2.0")
        assert "reloaded 4.0: a worker died while it loaded the model" in outcome["error"]
        assert served_versions(server) == ["2.0"]
        assert post(f"{sidecar.url}/try/reloaded", {"data": [{}]}).ok

        text = requests.get(f"{sidecar.url}/metrics", timeout=10).text
        for result, count in (("replaced", 2), ("unchanged", 1), ("failed", 2)):
            series = f'sidecar_reloads_total{{model="reloaded",outcome="{result}"}} {count}.0'
            assert series in text


def served_versions(server: Server) -> list[str]:
    listed = requests.get(f"{server.management_url}/models/reloaded/all", timeout=10).json()
    return [version["modelVersion"] for version in listed]


def test_root_is_json_for_programs_and_a_page_for_browsers(server: Server) -> None:
    described = requests.get(server.sidecar_url, timeout=10).json()
    assert described["models"]["dssm"] == [{"version": "1.0", "workers": ["READY"]}]
    assert described["routes"]["/recall"] == "graph_recall"
    page = requests.get(server.sidecar_url, headers={"Accept": "text/html"}, timeout=10)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    schema = requests.get(f"{server.sidecar_url}/openapi.json", timeout=10).json()
    groups = {tag["name"] for tag in schema["tags"] if tag["description"]}
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert {tag for operation in operations for tag in operation["tags"]} == groups
    assert all(operation["description"] for operation in operations)
    docs = requests.get(f"{server.sidecar_url}/docs", timeout=10)
    assert docs.ok
    for text in (page.text, docs.text):  # nothing from other servers
        assert not re.search(r"""(src|href)=["'](https?:)?//""", text)


PHONE = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
# As a person would: choose xgb, see the sample, press the button, read the response.
TRY_XGB = """
(async () => {
  const until = async (done) => { while (!done()) await new Promise(r => setTimeout(r, 20)); };
  const [model, body, answer] = ["model", "body", "answer"].map(id => document.getElementById(id));
  await until(() => body.value);
  body.value = "";
  model.value = "xgb";
  model.dispatchEvent(new Event("change"));
  await until(() => body.value);
  document.querySelector("button").click();
  await until(() => answer.textContent.startsWith("200"));
  return `${document.body.innerText} ${document.documentElement.scrollWidth} pixels`;
})()
"""


def test_page_shows_the_models_and_sends_a_sample(server: Server, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or lacking("no chromium; run: apt-get install chromium")
    text = asyncio.run(evaluate(chromium, f"{server.sidecar_url}/", TRY_XGB, tmp_path))
    assert "graph_recall\t1.0\t1 READY\t/recall" in text
    assert "/predictions/graph_recall/1.0" in text
    assert '{"predictions": [0.1]}' in text
    assert "item_ctr\tnumber\tnumber\t0\t0 .. 1" in text
    assert text.endswith(f"{PHONE['width']} pixels")  # nothing to scroll to


async def evaluate(chromium: str, url: str, script: str, folder: Path) -> str:
    """Load a page in headless Chromium, evaluate a script in it and return the result."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    # Without a network it would keep trying to call home.
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    options += ["--disable-sync", "--disable-quic"]
    process = await asyncio.create_subprocess_exec(
        *(chromium, *options, f"--user-data-dir={folder}", "about:blank"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(BROWSER_TIMEOUT_S), aiohttp.ClientSession() as session:
            port_file = folder / "DevToolsActivePort"
            while not port_file.exists() or not port_file.read_text():
                await asyncio.sleep(0.05)
            [port, _] = port_file.read_text().split()
            pages: list[dict[str, str]] = []
            while not pages:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    targets = await response.json(content_type=None)
                pages = [target for target in targets if target["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"]) as page:
                await page.send_json({"id": 1, "method": "Page.enable"})
                small = {"id": 4, "method": "Emulation.setDeviceMetricsOverride", "params": PHONE}
                await page.send_json(small)
                while not await loaded(page, url):
                    pass
                wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
                await page.send_json({"id": 3, "method": "Runtime.evaluate", "params": wanted})
                while (answer := await page.receive_json()).get("id") != 3:
                    pass
                return str(answer["result"]["result"]["value"])
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def loaded(page: aiohttp.ClientWebSocketResponse, url: str) -> bool:
    """Go to a page; a browser that has just started may forget it."""
    await page.send_json({"id": 2, "method": "Page.navigate", "params": {"url": url}})
    with suppress(TimeoutError):
        async with asyncio.timeout(LOAD_TIMEOUT_S):
            while (await page.receive_json()).get("method") != "Page.loadEventFired":
                pass
            return True
    return False


def test_generated_requests_get_what_the_openapi_promises(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.sidecar_url}/openapi.json")
    paths = schema.raw_schema["paths"]
    methods = [(path, method) for path, described in paths.items() for method in described]
    for path, method in methods:

        @given(schema[path][method].as_strategy())
        @settings(max_examples=20, deadline=None)
        def check(case: schemathesis.Case[Any]) -> None:
            # The model validates its features, not the schema.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"SIDECAR_PORT": "http"}, "SIDECAR_PORT=http: expected a port, 1 to 65535"),
        ({"SIDECAR_TIMEOUT_S": "nan"}, "SIDECAR_TIMEOUT_S=nan: expected seconds above 0"),
        ({"SIDECAR_TIMEOUT_S": "soon"}, "SIDECAR_TIMEOUT_S=soon: expected seconds above 0"),
    ],
)
def test_invalid_setting_is_refused(env: dict[str, str], complaint: str) -> None:
    with pytest.raises(ServeError, match=complaint):
        SidecarSettings.from_env(env)


def test_archive_that_a_killed_deploy_left_does_not_count_as_a_model(tmp_path: Path) -> None:
    for name in ("xgb", "xgb-20261120093000", "two_tower"):
        (tmp_path / f"{name}.mar").touch()
    settings = SidecarSettings.from_env({"SIDECAR_MODEL_STORE": str(tmp_path)})
    assert settings.sidecar_models == ("two_tower", "xgb")


def test_status_reads_the_index_mismatches_without_the_environments_proxy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_sidecar(server, tmp_path, INDEX_URI="nowhere") as sidecar:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_ports(1)[0]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        asked = Settings.from_env({"SIDECAR_PORT": sidecar.url.rpartition(":")[2]})

        def mismatches() -> list[str]:
            return asyncio.run(sidecar_process.findings(asked))[1] or []

        wait_until(lambda: bool(mismatches()), 10)
        [mismatch] = mismatches()
        assert mismatch.startswith("INDEX_URI=nowhere: cannot be read")


def test_index_that_does_not_answer_does_not_delay_probes(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with another_sidecar(server, tmp_path, INDEX_URI=uri) as sidecar:
            silent.settimeout(START_TIMEOUT_S)
            with silent.accept()[0]:  # the sidecar compares
                answer = requests.get(f"{sidecar.url}/health", timeout=2)
            assert answer.json() == {"status": "Healthy"}
