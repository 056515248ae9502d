"""Generate load: as much as a URL can take, by wrk or pywrkr, or by callers that check answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp

from handlers.errors import UserError

WRK_SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Load:
    """Throughput, latency and errors of a service under load.

    Attributes:
        requests_per_s: Requests per second that were answered with a status below 400.
        latency_p50_ms: Median latency of all answers.
        latency_p99_ms: 99th percentile of the latency of all answers.
        errors: Answers with status 400 or above, and requests without an answer.
    """

    requests_per_s: float
    latency_p50_ms: float
    latency_p99_ms: float
    errors: int


def generator() -> str:
    """Return the name of the load generator, with a warning if it distorts the figures."""
    if shutil.which("wrk"):
        return "wrk"
    return "pywrkr, which is slower than the services: install wrk to see how fast they are"


def load(url: str, body: Path, connections: int, seconds: int) -> Load:
    """Post requests repeatedly; each connection sends the next one after the last answer.

    Args:
        url: URL to post to.
        body: File with the JSON to post; several lines of JSON are posted in turn.
        connections: Number of concurrent connections.
        seconds: Duration.

    Raises:
        UserError: If the generator fails, or there are several lines and wrk is not installed.
    """
    return (_wrk if shutil.which("wrk") else _pywrkr)(url, body, connections, seconds)


def _wrk(url: str, body: Path, connections: int, seconds: int) -> Load:
    options = ["--threads=1", f"--connections={connections}", f"--duration={seconds}s"]
    output = _run(["wrk", *options, f"--script={WRK_SCRIPT}", url, "--", str(body)])
    return Load(**json.loads(output.splitlines()[-1]))


def _pywrkr(url: str, body: Path, connections: int, seconds: int) -> Load:
    if len(body.read_bytes().splitlines()) > 1:
        raise UserError(f"{body}: only wrk can post several requests in turn; install wrk")
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        _run(
            [
                *(str(Path(sys.executable).with_name("pywrkr")), url),
                *("--connections", str(connections), "--duration", str(seconds)),
                *("--method", "POST", "--header", "Content-Type: application/json"),
                *("--body", body.read_text(), "--json", file.name),
            ]
        )
        report: dict[str, Any] = json.load(file)
    refused = sum(n for status, n in report["status_codes"].items() if int(status) >= 400)
    return Load(
        report["requests_per_sec"] * (1 - refused / report["total_requests"]),
        report["percentiles"]["p50"] * 1e3,
        report["percentiles"]["p99"] * 1e3,
        report["total_errors"] + refused,
    )


@contextmanager
def calling(
    call: Callable[[aiohttp.ClientSession], Awaitable[None]],
    connections: int,
    timeout_s: float,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[None]:
    """Call repeatedly over several connections while the block runs.

    Args:
        call: Sends a request, checks the answer and pauses; it must catch its own errors.
        connections: Number of concurrent connections, each with its own calls.
        timeout_s: Seconds until an unanswered request fails.
        headers: Headers of each request.
    """
    done = threading.Event()

    async def call_on(session: aiohttp.ClientSession) -> None:
        while not done.is_set():
            await call(session)

    async def call_on_all() -> None:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers=headers,
        ) as session:
            await asyncio.gather(*(call_on(session) for _ in range(connections)))

    thread = threading.Thread(target=asyncio.run, args=(call_on_all(),))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError(f"{' '.join(command[:2])}: {result.stderr.strip() or result.stdout}")
    return result.stdout
