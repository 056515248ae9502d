"""The sidecar's process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aiohttp

from serving.process import ManagedProcess
from serving.settings import ROOT, Settings

REQUEST_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 12.0  # the sidecar allows 10 for requests in flight


def launch(settings: Settings, models: Sequence[str]) -> ManagedProcess:
    """Start the sidecar of a server.

    Args:
        settings: Settings of the server.
        models: Models that it serves.
    """
    environment = (
        {"OTEL_SERVICE_NAME": "recmar-sidecar"}
        | os.environ
        | {
            "SIDECAR_HOST": settings.sidecar_host,
            "SIDECAR_PORT": str(settings.sidecar_port),
            "SIDECAR_INFERENCE_URL": settings.inference_url,
            "SIDECAR_MANAGEMENT_URL": settings.management_url,
            "SIDECAR_KEY_FILE": str(settings.key_file) if settings.token_auth else "",
            "SIDECAR_MODEL_STORE": str(settings.model_store.resolve()),
            "SIDECAR_MODELS": ",".join(models),
            "TMPDIR": str(settings.run_folder),
        }
    )
    command = [sys.executable, "-m", "sidecar"]
    return ManagedProcess.start(
        "the sidecar", command, settings.sidecar_log, cwd=ROOT, env=environment
    )


async def healthy(settings: Settings) -> bool:
    """Whether the sidecar answers and can reach TorchServe."""
    with suppress(aiohttp.ClientError, TimeoutError):
        status, _ = await _get(settings, "/ping")
        return status < 400
    return False


async def index_mismatches(settings: Settings) -> list[str]:
    """Return the sidecar's findings about the item index; none if it does not answer."""
    with suppress(aiohttp.ClientError, TimeoutError, ValueError):
        _, answer = await _get(settings, "/health")
        return list(answer.get("index", []))
    return []


async def _get(settings: Settings, path: str) -> tuple[int, Any]:
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{settings.sidecar_url}{path}") as response,
    ):
        return response.status, await response.json()


def stop(sidecar: ManagedProcess) -> None:
    """Let the sidecar finish the requests in flight and exit."""
    sidecar.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        sidecar.process.wait(STOP_TIMEOUT_S)


def terminate(sidecar: ManagedProcess) -> None:
    """Kill the sidecar."""
    sidecar.process.kill()
    sidecar.process.wait()
