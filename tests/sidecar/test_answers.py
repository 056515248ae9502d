"""The sidecar's answers at the edges: each is the model's own, or a ``{"detail": ...}``.

The handlers answer in this process, without TorchServe, so that what the sidecar changes shows.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from handlers.base import RecHandler
from serving.ports import free_ports
from serving.testing import ROOT
from tests.examples import Example, load_handler, module

START_TIMEOUT_S = 30.0
MODELS = ("graph_recall", "youtube_dnn", "xgb")
BIG = 10_000_000
RECALL = b'{"user_id": "u"}'


class Models(BaseHTTPRequestHandler):
    """Answers as TorchServe does, with the handlers of this process."""

    handlers: dict[str, RecHandler]

    def do_POST(self) -> None:
        """Answer a prediction; of an unknown model, with a body that no handler writes."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        handler = self.handlers.get(self.path.rpartition("/")[2])
        status, answer = handler.answer([body])[0][0] if handler else (200, b"{}")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        """Answer that no model is loaded."""
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def handlers(artifact_folder: Callable[[Example], Path]) -> dict[str, RecHandler]:
    examples = [module(model).EXAMPLES[0] for model in MODELS]
    return {e.model: load_handler(e.model, artifact_folder(e)) for e in examples}


@pytest.fixture(scope="module")
def sidecar(handlers: dict[str, RecHandler], tmp_path_factory: Any) -> Iterator[str]:
    """The base URL of a sidecar in front of the handlers."""
    [port] = free_ports(1)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("", (Models,), {"handlers": handlers})) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        torchserve = f"http://127.0.0.1:{stub.server_address[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {
                "SIDECAR_PORT": str(port),
                "SIDECAR_INFERENCE_URL": torchserve,
                "SIDECAR_MANAGEMENT_URL": torchserve,
                "SIDECAR_MODELS": ",".join(MODELS),
                "SIDECAR_MODEL_STORE": str(tmp_path_factory.mktemp("store")),
            },
        )
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()
            stub.shutdown()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def post(url: str, body: bytes | Iterator[bytes], **headers: str) -> requests.Response:
    headers = {"Content-Type": "application/json"} | headers
    return requests.post(url, data=body, headers=headers, timeout=30)


def refused(handler: RecHandler, data: bytes) -> str:
    """Return the message with which a handler refuses data."""
    [(status, body)], _ = handler.answer([b'{"data": %b}' % data])
    assert status == 400, body
    message: str = json.loads(body)["message"]
    return message


IDS = [
    b'"u"',
    b"1",
    b"1.0",
    b"1.50",
    b'""',
    b"7234567890123456789",
    b"18446744073709551616",
    b"-99999999999999999999999",
    b"9" * 400,
]
NOT_IDS = [
    b"true",
    b"false",
    b"[]",
    b'{"a": 12345678901234567890123}',
    b"1e999",
    b"-1e999",
    b"9" * 5_000,
    b"7.234567890123457e+18",
    b"7.2345678901234570E18",
    b"-7234567890123456789.0",
]


@pytest.mark.parametrize("token", IDS, ids=lambda token: token.decode()[:30])
def test_every_id_that_a_model_takes_passes_the_sidecar(
    sidecar: str, handlers: dict[str, RecHandler], token: bytes
) -> None:
    row = b'{"user_id": %b, "top_k": 3}' % token
    [(status, body)], _ = handlers["graph_recall"].answer([b'{"data": [%b]}' % row])
    assert status == 200
    answer = post(f"{sidecar}/recall", row)
    assert (answer.status_code, answer.json()) == (200, json.loads(body)["predictions"][0])

    row = b'{"user_features": {}, "history_item_ids": [%b, null]}' % token
    [(status, body)], _ = handlers["youtube_dnn"].answer([b'{"data": [%b]}' % row])
    assert status == 200
    answer = post(f"{sidecar}/user_embedding", row)
    assert (answer.status_code, answer.json()) == (
        200,
        {"user_embedding": json.loads(body)["predictions"]},
    )


@pytest.mark.parametrize("value", NOT_IDS, ids=lambda value: value.decode()[:30])
def test_what_is_no_id_is_refused_alike_and_shown_as_it_was_sent(
    sidecar: str, handlers: dict[str, RecHandler], value: bytes
) -> None:
    sent = value.decode() if len(value) <= 60 else value.decode()[:57] + "..."
    for route, model, row in (
        ("recall", "graph_recall", b'{"user_id": %b}' % value),
        (
            "user_embedding",
            "youtube_dnn",
            b'{"user_features": {}, "history_item_ids": ["a", %b]}' % value,
        ),
    ):
        message = refused(handlers[model], b"[%b]" % row)
        assert f"got {sent}" in message
        answer = post(f"{sidecar}/{route}", row)
        assert answer.status_code == 400
        if value[:1] not in b"[{":  # the sidecar says "a list" or "an object"
            assert answer.json() == {"detail": message.removeprefix("data[0].")}


@pytest.mark.parametrize(
    "value",
    [b"true", b"1e999", b'"7"', b"9" * 400, b"[12345678901234567890123]", b'{"a": [1.10, true]}'],
    ids=lambda value: value.decode()[:30],
)
def test_feature_is_refused_alike_and_shown_as_it_was_sent(
    sidecar: str, handlers: dict[str, RecHandler], value: bytes
) -> None:
    rows = b'[{"item_ctr": 0.1}, {"item_ctr": %b}]' % value
    message = refused(handlers["xgb"], rows)
    assert f"got {value.decode()[:57]}" in message
    for name in ("features_list", "data"):
        answer = post(f"{sidecar}/predict", b'{"%b": %b}' % (name.encode(), rows))
        assert answer.status_code == 400
        assert answer.json() == {"detail": name + message.removeprefix("data")}


@pytest.mark.parametrize(
    ("route", "body", "place"),
    [
        ("recall", b'{"user_id": "u", "top_k": 18446744073709551616}', None),
        ("user_embedding", b'{"user_features": {"x": 1}}', "user_features: expected features"),
        ("user_embedding", b'{"user_features": {"x": 1}, "history_item_ids": null}', "user_feat"),
        ("user_embedding", b'{"user_features": {"x": 1}, "history_item_ids": []}', None),
        ("user_embedding", b'{"user_features": {}}', None),
        ("predict", b'{"features_list": [{}, {"x": 1}]}', "features_list[1]: expected features"),
        ("predict", b'{"features_list": [{"item_ctr": 1, "x": 1e999}]}', None),
        ("predict", b'{"features_list": null, "data": [{}]}', None),
    ],
)
def test_a_row_of_unknown_features_is_refused_by_the_callers_name(
    sidecar: str, route: str, body: bytes, place: str | None
) -> None:
    answer = post(f"{sidecar}/{route}", body)
    if place is None:
        assert answer.status_code == 200, answer.text
    else:
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith(place)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (gzip.compress(RECALL, mtime=0), "a gzip body; send it uncompressed"),
        (zlib.compress(RECALL), "a deflate body; send it uncompressed"),
        (b"\xef\xbb\xbf" + RECALL, "UTF-8 with a byte order mark; send it without the mark"),
        (RECALL.decode().encode("utf-16"), "UTF-16; send UTF-8"),
        (RECALL.decode().encode("utf-32"), "UTF-32; send UTF-8"),
        (RECALL.decode().encode("utf-16-le"), "UTF-16; send UTF-8"),
        (b'{"user_id": "\xe9"}', "bytes that are not UTF-8 (0xe9 at position 13); send UTF-8"),
    ],
)
def test_other_encoding_is_named(sidecar: str, body: bytes, found: str) -> None:
    for route in ("recall", "predict"):
        answer = post(f"{sidecar}/{route}", body)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith(f"body: expected JSON, got {found}")


@pytest.mark.parametrize("route", ["recall", "predict", "user_embedding", "try/xgb"])
def test_body_of_10_mb_gets_413_with_a_detail(sidecar: str, route: str) -> None:
    def parts() -> Iterator[bytes]:  # without a declared length
        yield from [b" " * 1_000_000] * 10

    for body, got in ((b" " * BIG, str(BIG)), (parts(), "")):
        answer = post(f"{sidecar}/{route}", body)
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith(
            f"body: expected at most 8388608 bytes, got {got}"
        )


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "nowhere", 404),
        ("GET", "try/nothing", 404),
        ("GET", "static-offline-docs/nothing", 404),
        ("GET", "%00%ff", 404),
        ("GET", "recall", 405),
        ("PUT", "recall", 405),
        ("DELETE", "", 405),
        ("OPTIONS", "recall", 405),
        ("INVENTED", "recall", 400),  # the HTTP parser does not know it
        ("POST", "recall", 400),
        ("POST", "item_embedding", 500),  # the model's answer has no predictions
        ("GET", "ping", 503),
        ("GET", "health", 503),
    ],
)
def test_every_failure_has_a_detail(sidecar: str, method: str, path: str, status: int) -> None:
    body = b'{"item_features": {}}' if path == "item_embedding" else b"[]"
    headers = {"Content-Type": "application/json", "X-Request-ID": "abc-1"}
    answer = requests.request(
        method, f"{sidecar}/{path}", data=body, headers=headers, timeout=30, allow_redirects=False
    )
    assert answer.status_code == status
    check_problem(answer)
    if method != "INVENTED":
        assert answer.headers["X-Request-ID"] == "abc-1"


def check_problem(answer: requests.Response) -> None:
    assert answer.headers["Content-Type"] == "application/json"
    problem = answer.json()
    assert list(problem) == ["detail"]
    assert len(problem["detail"]) > 5


@pytest.mark.parametrize(
    "text",
    [
        b"not HTTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /recall HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /recall HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /recall HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_bad_http_gets_a_detail(sidecar: str, text: bytes) -> None:
    port = int(sidecar.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 40")
    assert b"content-type: application/json" in head
    assert list(json.loads(body)) == ["detail"]
