"""A real S3 server for tests, on a free port of the loopback."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.ports import free_ports
from serving.process import ManagedProcess
from serving.testing import ROOT

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Run an S3 server, which stores in memory, while the block runs.

    Args:
        log: File that receives its output.

    Yields:
        The URL, for ``AWS_ENDPOINT_URL``; it accepts any credentials.
    """
    [port] = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = ManagedProcess.start("the S3 server", command, log, cwd=ROOT, env=os.environ)
    try:
        wait_until_listening(server, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.process.terminate()
        server.process.wait(STOP_TIMEOUT_S)


def wait_until_listening(server: ManagedProcess, port: int) -> None:
    """Wait until a server listens on a port of the loopback."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _listens(port):
        server.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.name} is not up after {START_TIMEOUT_S:.0f} s")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
