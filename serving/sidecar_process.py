"""The sidecar's process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import aiohttp

from serving.client import OK
from serving.process import ManagedProcess
from serving.settings import ROOT, ServeError, Settings

REQUEST_TIMEOUT_S = 5.0
ATTEMPTS = 3
STOP_TIMEOUT_S = 12.0  # the sidecar allows 10 for requests in flight
MAX_RESTARTS, RESTART_WINDOW_S = 3, 60.0

logger = logging.getLogger(__name__)


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


async def ping(settings: Settings) -> int | None:
    """Return the status of the sidecar's /ping; None if it does not answer."""
    with suppress(aiohttp.ClientError, TimeoutError, ValueError):
        status, _ = await _get(settings, "/ping")
        return status
    return None


async def findings(settings: Settings) -> tuple[bool, list[str] | None]:
    """Return whether the sidecar's /health is good or unknown, and what it complains about.

    The latter is None if there is nothing to complain about, but the sidecar has not looked at the
    item index: it knows of none, or has just started.
    """
    for _ in range(ATTEMPTS):
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            status, answer = await _get(settings, "/health")
            return (True, answer.get("index")) if status == OK else (False, [answer["detail"]])
    return True, None


async def _get(settings: Settings, path: str) -> tuple[int, Any]:
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"{settings.sidecar_url}{path}") as response,
    ):
        return response.status, await response.json()


class Sidecar:
    """The sidecar of a server, which is started again when it ends: it has no state to lose.

    Args:
        settings: Settings of the server.
        models: Models that it serves.

    Attributes:
        process: Its process.
    """

    def __init__(self, settings: Settings, models: Sequence[str]) -> None:
        self._launch = partial(launch, settings, models)
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        self.process = self._launch()

    def keep(self) -> None:
        """Start it again if it has ended.

        Raises:
            ServeError: If it has been restarted MAX_RESTARTS times within RESTART_WINDOW_S.
        """
        try:
            self.process.check()
        except ServeError as error:
            now = time.monotonic()
            often = len(self._restarts) == MAX_RESTARTS
            if often and now - self._restarts[0] < RESTART_WINDOW_S:
                raise
            self._restarts.append(now)
            logger.warning("%s\nstarting it again", error)
            self.process = self._launch()

    def stop(self) -> None:
        """Let it finish the requests in flight and exit."""
        self.process.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.process.wait(STOP_TIMEOUT_S)

    def terminate(self) -> None:
        """Kill it."""
        self.process.process.kill()
        self.process.process.wait()
