"""The services that `bench.serving` compares: two configurations of TorchServe, and FastAPI."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import requests

from archive.catalog import CONFIG_FILE
from archive.package import with_config
from bench.fastapi_service import MODELS_VARIABLE
from handlers.errors import UserError
from serving.client import TorchServe, TorchServeError
from serving.ports import free_ports
from serving.server import java
from serving.settings import Settings
from serving.testing import ROOT, Server, instance_env, make_archive, running_server

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.1

DO_NOTHING = "do_nothing"
DO_NOTHING_HANDLER = """
import logging

class Handler:
    def initialize(self, context):
        logging.getLogger().setLevel(logging.WARNING)

    def handle(self, data, context):
        for i in range(len(data)):
            context.set_response_content_type(i, "application/json")
        return [b'{"predictions":[0.5]}'] * len(data)
"""


@contextmanager
def our_torchserve(archives: Mapping[str, Path], scratch: Path) -> Iterator[Server]:
    """Serve our archives and a handler that does nothing, with the first archive's settings.

    That handler does only what the protocol requires: it answers JSON with its content type.

    Args:
        archives: Archives by model.
        scratch: Folder for the model store.
    """
    store = scratch / "our-store"
    store.mkdir()
    for mar in archives.values():
        shutil.copy(mar, store)
    first = next(iter(archives.values()))
    with zipfile.ZipFile(first) as archive:
        config = archive.read(CONFIG_FILE).decode()
    make_archive(store, DO_NOTHING, DO_NOTHING_HANDLER, config=config)
    with running_server(store) as server:
        yield server


@contextmanager
def default_torchserve(mar: Path, scratch: Path) -> Iterator[str]:
    """Serve an archive without its settings by TorchServe with default settings.

    Args:
        mar: The archive.
        scratch: Folder for the model store and the configuration.

    Yields:
        The base URL.

    Raises:
        UserError: If TorchServe does not start.
    """
    store = scratch / "default-store"
    store.mkdir()
    with_config(mar, "handler: {}\n", store / mar.name)
    with instance_env(store) as env:
        settings = Settings.from_env(env)
        config = scratch / "default.properties"
        config.write_text(
            f"inference_address={settings.inference_url}\n"
            f"management_address={settings.management_url}\n"
            f"metrics_address=http://127.0.0.1:{settings.metrics_port}\n"
            "grpc_inference_port=0\ngrpc_management_port=0\n"
        )
        process = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("torchserve"), "--start", "--foreground"),
                *("--ncs", "--disable-token-auth", "--ts-config", config),
                *("--model-store", store, "--models", f"{mar.stem}={mar.name}"),
            ],
            cwd=env["TMPDIR"],
            env={**env, "JAVA_HOME": str(java().parents[1]), "TEMP": env["TMPDIR"]},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_until(lambda: asyncio.run(_all_ready(settings)), process)
            yield settings.inference_url
        finally:
            _kill(process)


async def _all_ready(settings: Settings) -> bool:
    async with TorchServe.on_this_machine(settings) as torchserve:
        models = await torchserve.models()
    return bool(models) and all(model.ready for model in models)


@contextmanager
def fastapi(archives: Mapping[str, Path], scratch: Path) -> Iterator[str]:
    """Serve the files of our archives by the FastAPI service.

    Args:
        archives: Archives by model.
        scratch: Folder for the unpacked archives.

    Yields:
        The base URL.

    Raises:
        UserError: If it does not start.
    """
    models = scratch / "fastapi"
    for name, mar in archives.items():
        with zipfile.ZipFile(mar) as archive:
            archive.extractall(models / name)
    [port] = free_ports(1)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uvicorn", "bench.fastapi_service:create_app", "--factory"),
            *("--workers", "2", "--port", str(port)),
            *("--loop", "uvloop", "--http", "httptools"),
            *("--no-access-log", "--log-level", "warning"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", MODELS_VARIABLE: str(models)},
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until(lambda: requests.get(url, timeout=5).status_code == 404, process)
        yield url
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and the workers in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if ready():
                return
        except (requests.RequestException, TorchServeError):
            pass  # the service does not listen yet
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{process.args!r} did not start within {START_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)
