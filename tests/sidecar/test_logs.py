"""A request can be followed by its id, and by its trace, from the sidecar to the worker."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from handlers import logs
from handlers.signature import SIGNATURE_FILE, sha256
from serving.settings import Settings
from serving.testing import ROOT, Server, make_archive, running_server, wait_until
from tests.examples import Example
from tests.examples.xgb import DEFAULT

TIMEOUT_S = 20.0
POISON = 3

# Answers with the headers of the request.
ECHO = """
import json
import logging

class Handler:
    def initialize(self, context):
        logging.getLogger().setLevel(logging.WARNING)

    def handle(self, data, context):
        asked = [context.get_all_request_header(i) for i in range(len(data))]
        return [json.dumps({"predictions": [headers]}).encode() for headers in asked]
"""


def failing(mar: Path, target: Path) -> None:
    """Copy an archive; its handler then fails on requests of POISON rows."""
    handler = f"{mar.stem}_handler.py"
    with zipfile.ZipFile(mar) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    method = "    def score(self, matrix"
    bug = f"    def predict(self, rows):\n        assert len(rows) != {POISON}, 'poison'\n"
    bug += "        return super().predict(rows)\n\n"
    files[handler] = files[handler].decode().replace(method, bug + method).encode()
    signature = json.loads(files[SIGNATURE_FILE])
    signature["files"][handler] = sha256(files[handler])
    files[SIGNATURE_FILE] = json.dumps(signature).encode()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


class Collector:
    """An OTLP collector.

    Attributes:
        url: URL of its endpoint.
        spans: Received spans, each with the name of its service.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {a.key: a.value.string_value for a in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        collector.spans += [(names["service.name"], span) for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def trace(self, trace_id: str, n_spans: int) -> dict[str, Span]:
        """Wait for a number of spans of a trace; return them by name."""
        found: dict[str, Span] = {}

        def arrived() -> bool:
            spans = [span for _, span in self.spans if span.trace_id.hex() == trace_id]
            found.update({span.name: span for span in spans})
            return len(found) >= n_spans

        wait_until(arrived, TIMEOUT_S)
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever)
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    archive_file: Callable[[Example], Path],
    collector: Collector,
) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("model-store")
    failing(archive_file(DEFAULT), store / "xgb.mar")
    make_archive(store, "dssm", ECHO)
    tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with running_server(store, LOG_FORMAT="json", **tracing) as running:
        yield running


def lines(log: Path, request_id: str) -> list[dict[str, Any]]:
    """Return the lines of a log about a request, once there are any."""
    found: list[dict[str, Any]] = []

    def written() -> bool:
        *whole, _ = log.read_text().split("\n")  # the last may be incomplete
        objects = [json.loads(line) for line in whole]
        assert all({"time", "level", "message"} <= line.keys() for line in objects)
        found[:] = [line for line in objects if line.get("request_id") == request_id]
        return bool(found)

    wait_until(written, TIMEOUT_S)
    return found


def test_a_fault_in_a_model_is_logged_with_the_id_of_the_request(server: Server) -> None:
    settings = Settings.from_env(server.env)
    rows = DEFAULT.rows[:POISON]
    answer = requests.post(
        f"{server.sidecar_url}/predict",
        json={"features_list": rows},
        headers={"X-Request-ID": "from-a-caller"},
        timeout=TIMEOUT_S,
    )
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (503, "from-a-caller")
    [by_worker] = lines(settings.log, "from-a-caller")
    assert "AssertionError: poison" in by_worker.pop("traceback")
    assert by_worker.pop("latency_ms") > 0
    logged = {key: by_worker[key] for key in ("level", "model", "version", "status")}
    assert logged == {"level": "ERROR", "model": "xgb", "version": DEFAULT.version, "status": 500}
    [by_sidecar] = lines(settings.sidecar_log, "from-a-caller")
    assert (by_sidecar["model"], by_sidecar["status"]) == ("xgb", 503)
    assert "scoring failed: AssertionError" in by_sidecar["detail"]


def test_the_sidecars_lines_name_model_and_version(server: Server) -> None:
    log = Settings.from_env(server.env).sidecar_log
    numbers = itertools.count()

    def named() -> bool:  # the sidecar asks TorchServe for them every few seconds
        request_id = f"named-{next(numbers)}"
        headers = {"X-Request-ID": request_id}
        url = f"{server.sidecar_url}/predict"
        requests.post(url, json={"data": DEFAULT.rows[:1]}, headers=headers, timeout=TIMEOUT_S)
        [line] = lines(log, request_id)
        assert line["latency_ms"] > 0
        return (line["model"], line["version"]) == ("xgb", DEFAULT.version)

    wait_until(named, TIMEOUT_S)


def test_a_trace_goes_through_the_sidecar_to_torchserve(
    server: Server, collector: Collector
) -> None:
    trace_id, caller = "1" * 32, "2" * 16
    answer = requests.post(
        f"{server.sidecar_url}/query_embedding",
        json={"query_features": {}},
        headers={"traceparent": f"00-{trace_id}-{caller}-01"},
        timeout=TIMEOUT_S,
    )
    [seen] = answer.json()["query_embedding"]
    spans = collector.trace(trace_id, 2)
    inbound = spans["POST /query_embedding"]
    outbound = spans["POST /predictions/dssm"]
    assert inbound.parent_span_id.hex() == caller
    assert outbound.parent_span_id == inbound.span_id
    assert seen["traceparent"] == f"00-{trace_id}-{outbound.span_id.hex()}-01"
    assert seen["X-Request-ID"] == answer.headers["X-Request-ID"]
    assert {service for service, _ in collector.spans} == {"recmar-sidecar"}
    # Probes and the sidecar's own requests are not traced.
    assert {span.name.split()[-1].split("/")[1] for _, span in collector.spans} <= {
        "query_embedding",
        "predict",
        "predictions",
    }


@pytest.mark.parametrize(
    ("log_format", "expected"),
    [
        ("json", {"level": "ERROR", "module": "package"}),
        ("text", None),
        ("yaml", None),
    ],
)
def test_log_format_decides_the_form_of_a_commands_messages(
    log_format: str, expected: dict[str, str] | None
) -> None:
    command = [sys.executable, "-m", "archive.package", "--model", "nothing"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "LOG_FORMAT": log_format},
        capture_output=True,
        text=True,
        check=False,
    )
    *others, last = run.stderr.splitlines()
    message = "no model 'nothing'; there are "
    if expected:
        logged = json.loads(last)
        assert logged.pop("message").startswith(message)
        assert expected.items() <= logged.items()
    else:
        assert last.startswith(f"error: {message}")
    wrong = ["warning: LOG_FORMAT=yaml: expected text or json; text is used"]
    assert others == (wrong if log_format == "yaml" else [])


def test_json_line_can_hold_any_message() -> None:
    fields = {"path": Path("x"), "id": "\udcff"}
    record = logging.makeLogRecord({"msg": "a\nb \ud800", "fields": fields})
    logged = json.loads(logs.JsonFormatter().format(record))
    assert (logged["message"], logged["path"], logged["id"]) == ("a\nb ?", "x", "?")
