"""What TorchServe should not answer does not reach it behind the proxies of deploy/."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
import requests

from serving.ports import free_ports
from serving.testing import ROOT, Server, make_archive, running_server, wait_until
from tests.conftest import lacking

START_TIMEOUT_S, TIMEOUT_S = 20.0, 10.0
STAND_IN = """
import json

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [json.dumps({"predictions": [1]}).encode() for _ in data]
"""
BODY = b'{"data":[{}]}'
CHUNKED = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
JSON = "Content-Type: application/json"


def http(line: str, *headers: str, body: bytes = BODY, has_length: bool = True) -> bytes:
    """Return the bytes of a request."""
    length = (f"Content-Length: {len(body)}",) if has_length else ()
    lines = (f"{line} HTTP/1.1", "Host: recmar", "Connection: close", *headers, *length, "", "")
    return "\r\n".join(lines).encode() + body


PREDICT = "POST /predictions/first"
MULTIPART = "Content-Type: multipart/form-data; boundary="
# Requests, and the statuses of TorchServe itself, behind HAProxy and behind nginx.
EDGES = {
    "a prediction": (http(PREDICT, JSON), 200, 200, 200),
    "a prediction in chunks": (
        http(PREDICT, JSON, "Transfer-Encoding: chunked", body=CHUNKED, has_length=False),
        *(200, 200, 200),
    ),
    "GET /ping": (http("GET /ping", body=b""), 200, 200, 200),
    "an unknown model": (http("POST /predictions/second", JSON), 404, 404, 404),
    "PUT predicts": (http("PUT /predictions/first", JSON), 200, 405, 405),
    "DELETE predicts": (http("DELETE /predictions/first", JSON), 200, 405, 405),
    "GET predicts": (http("GET /predictions/first", body=b""), 200, 405, 405),
    "OPTIONS describes a model": (http("OPTIONS /predictions/first", body=b""), 200, 405, 405),
    "OPTIONS describes the API": (http("OPTIONS /", body=b""), 200, 404, 404),
    "POST /ping": (http("POST /ping"), 200, 405, 405),
    "/explanations predicts": (http("POST /explanations/first", JSON), 200, 404, 404),
    "/invocations predicts": (http("POST /invocations", JSON), 200, 404, 404),
    "GET * fails": (http("GET *", body=b""), 500, 404, 400),
    "an empty boundary fails": (http(PREDICT, MULTIPART), 500, 415, 415),
    "a boundary is missing": (http(PREDICT, "Content-Type: multipart/form-data"), 200, 415, 415),
    # HAProxy forwards it with the chunks only, so nobody sees two lengths.
    "two lengths": (
        http(PREDICT, JSON, "Transfer-Encoding: chunked", body=CHUNKED),
        *(200, 200, 400),
    ),
    "an unknown transfer coding": (
        http(PREDICT, JSON, "Transfer-Encoding: xchunked"),
        *(200, 400, 501),
    ),
    "two different lengths": (http(PREDICT, JSON, "Content-Length: 5"), 400, 400, 400),
    "/reload is the sidecar's": (http("POST /reload"), 404, 404, 404),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("model-store")
    make_archive(store, "first", STAND_IN)
    with running_server(store) as running:
        yield running


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def proxied(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """A proxy of deploy/ in front of the server: its name and its port."""
    name = request.param
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        lacking(f"{name} is not installed; run: apt-get install {name}")
    folder, [port] = tmp_path_factory.mktemp(name), free_ports(1)
    file = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[name]
    here = f"127.0.0.1:{server.env['INFERENCE_PORT']}"
    if name == "haproxy":
        here += f" port {server.env['SIDECAR_PORT']}"
    lines = (ROOT / "deploy" / file).read_text().splitlines()
    config = "\n".join(line for line in lines if "10.0.0.2" not in line)
    config = config.replace("127.0.0.1:8070", f"127.0.0.1:{port}").replace("10.0.0.1:8080", here)
    (folder / file).write_text(f"{config}\n")
    command = {
        "haproxy": [program, "-db", "-f", str(folder / file)],
        "nginx": [program, "-c", str(folder / file), "-g", f"daemon off; pid {folder}/pid;"],
    }[name]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: ready(f"http://127.0.0.1:{port}/ping"), START_TIMEOUT_S)
            yield name, port
        finally:
            process.terminate()


def ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=TIMEOUT_S).ok
    except requests.ConnectionError:
        return False


def status(port: int, request: bytes) -> int:
    """Send a request as it is, and return the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            return int(answer.readline().split()[1])


@pytest.mark.parametrize("edge", EDGES)
def test_edges_that_torchserve_leaves_open(server: Server, edge: str) -> None:
    request, expected, _, _ = EDGES[edge]
    assert status(int(server.env["INFERENCE_PORT"]), request) == expected


@pytest.mark.parametrize("edge", EDGES)
def test_edges_are_closed_behind_a_proxy(proxied: tuple[str, int], edge: str) -> None:
    name, port = proxied
    request, _, haproxy, nginx = EDGES[edge]
    assert status(port, request) == {"haproxy": haproxy, "nginx": nginx}[name]


def test_a_body_that_is_too_large_gets_a_message(proxied: tuple[str, int]) -> None:
    _, port = proxied
    length = f"Content-Length: {9 << 20}"
    # Only the beginning: a proxy answers before it has the whole body.
    request = http(PREDICT, JSON, length, body=b" " * 300_000, has_length=False)
    assert status(port, request) == 413


def test_refusals_have_torchserves_shape(proxied: tuple[str, int]) -> None:
    _, port = proxied
    url = f"http://127.0.0.1:{port}"
    for answer in (
        requests.put(f"{url}/predictions/first", json={}, timeout=TIMEOUT_S),
        requests.get(f"{url}/models", timeout=TIMEOUT_S),
        requests.post(f"{url}/predictions/first", files={"data": b"1"}, timeout=TIMEOUT_S),
    ):
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json().keys() == {"code", "type", "message"}
        assert answer.json()["code"] == answer.status_code
