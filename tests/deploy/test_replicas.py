"""Two servers behind a proxy: a deploy to both loses no request, nor does the death of one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import requests

from archive.registry.store import Registry
from scripts import deploy
from serving.load import calling
from serving.ports import free_ports
from serving.testing import ROOT, Server, make_archive, running_server
from tests.conftest import lacking

MODEL = "replicated"
SCORES = {"v1": 1, "v2": 2}
CONNECTIONS = 16
BODY = {"data": [{"padding": "x" * 20_000}]}  # more than HAProxy's usual buffer
HAPROXY = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
START_TIMEOUT_S = 20.0

# Returns its version's score and its TMPDIR after some milliseconds of work.
STAND_IN = """
import json
import os
import time

class Handler:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        time.sleep(0.005)
        answer = {{"predictions": [{score}], "instance": os.environ["TMPDIR"]}}
        return [json.dumps(answer).encode() for _ in data]
"""


def archive(folder: Path, version: str) -> Path:
    """Make an archive of the stand-in."""
    folder.mkdir()
    golden = json.dumps({"rows": [{}], "predictions": [SCORES[version]]})
    source = STAND_IN.format(score=SCORES[version])
    return make_archive(folder, MODEL, source, version=version, golden=golden)


@contextmanager
def proxy(folder: Path, *servers: Server) -> Iterator[str]:
    """Run HAProxy in front of servers, configured as in deploy/haproxy.cfg; yields its URL."""
    if HAPROXY is None:
        lacking("haproxy is not installed; run: apt-get install haproxy")
    url = f"127.0.0.1:{free_ports(1)[0]}"
    config = (ROOT / "deploy/haproxy.cfg").read_text().replace("127.0.0.1:8070", url)
    for host, server in zip(("10.0.0.1", "10.0.0.2"), servers, strict=True):
        ports = server.env["INFERENCE_PORT"], server.env["SIDECAR_PORT"]
        config = config.replace(f"{host}:8080", f"127.0.0.1:{ports[0]} port {ports[1]}")
    path = folder / "haproxy.cfg"
    path.write_text(config)
    with subprocess.Popen([HAPROXY, "-db", "-f", path]) as process:
        try:
            yield f"http://{url}"
        finally:
            process.terminate()


@dataclass
class Load:
    """The callers' results.

    Attributes:
        n_answers: Number of responses, by score and server.
        failed: Failed requests: when they were sent, by a monotonic clock, and the error.
    """

    n_answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    failed: list[tuple[float, str]] = field(default_factory=list)


@contextmanager
def load(url: str) -> Iterator[Load]:
    """Keep calling the default version while the block runs."""
    seen = Load()

    async def call(session: aiohttp.ClientSession) -> None:
        started = time.monotonic()
        try:
            async with session.post(f"{url}/predictions/{MODEL}", json=BODY) as answer:
                answer.raise_for_status()
                got = json.loads(await answer.read())
            seen.n_answers[got["predictions"][0], got["instance"]] += 1
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            seen.failed.append((started, repr(error)))
        await asyncio.sleep(0.02)

    with calling(call, CONNECTIONS, 20):
        yield seen


def wait_for(url: str) -> None:
    """Wait until a proxy has found a server that is ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/ping", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    pytest.fail("the proxy found no server that is ready")


def test_deploy_and_death_of_a_server_lose_only_the_requests_in_flight(
    tmp_path: Path,
) -> None:
    registry = Registry(tmp_path / "registry")
    for version in SCORES:
        registry.register(MODEL, version, archive(tmp_path / version, version))
    stores = [tmp_path / "store-a", tmp_path / "store-b"]
    for store in stores:
        archive(store, "v1")
    with (
        running_server(stores[0]) as a,
        running_server(stores[1]) as b,
        proxy(tmp_path, a, b) as url,
    ):
        wait_for(url)
        with load(url) as seen:
            flags = ["--model", MODEL, "--version", "v2", "--watch-s", "1", "--ungated", "a test"]
            flags += ["--registry", str(registry.folder)]
            flags += ["--service-url", a.management_url, b.management_url]
            flags += ["--inference-url", a.inference_url, b.inference_url]
            assert deploy.main([*flags, "--model-store", *map(str, stores)]) == 0
            assert seen.failed == []
            both = seen.n_answers.copy()
            time.sleep(0.5)
            died = time.monotonic()
            os.killpg(a.process.pid, signal.SIGKILL)
            time.sleep(0.5)  # its last responses are counted by now
            one = seen.n_answers.copy()
            time.sleep(1)
    assert [failure for failure in seen.failed if failure[0] > died] == []
    assert len(seen.failed) <= CONNECTIONS
    here, there = (str(server.run_folder) for server in (a, b))
    for instance in (here, there):
        assert all(both[score, instance] > 0 for score in SCORES.values())
    assert seen.n_answers[2, here] == one[2, here]
    assert seen.n_answers[2, there] > one[2, there] > both[2, there]
    assert all(seen.n_answers[1, i] == both[1, i] for i in (here, there))
