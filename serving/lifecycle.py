"""Wait until a starting server is ready; drain one that is about to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from serving import sidecar_process
from serving.archive_file import CONFIG_FILE, ArchiveFile
from serving.client import TorchServe, TorchServeError
from serving.model_version import ModelVersion
from serving.process import ManagedProcess, tail
from serving.rollout import drain
from serving.server import load_failure
from serving.settings import ServeError, Settings

START_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 10.0
TRACEBACK_TIMEOUT_S = 6.0
POLL_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


async def wait_until_ready(
    processes: Sequence[ManagedProcess], settings: Settings, archives: Mapping[str, ArchiveFile]
) -> list[ModelVersion]:
    """Wait until every model has its workers and the sidecar answers; log each model's time.

    Args:
        processes: Processes of the server.
        settings: Settings of the server.
        archives: Archives that it loads, by model.

    Raises:
        ServeError: If a model fails to load, its configuration is not in effect, or something is
            not READY within START_TIMEOUT_S.
    """
    started = time.monotonic()
    waiting = dict(archives)
    async with TorchServe.on_this_machine(settings, tokens=settings.token_auth) as torchserve:
        while True:
            for process in processes:
                process.check()
            for name, archive in waiting.items():
                await check_load(settings, name, archive.version)
            models: list[ModelVersion] = []
            with suppress(TorchServeError):  # TorchServe does not listen yet
                models = await torchserve.models()
            for model in models:
                if model.ready and model.name in waiting:
                    check_config(model, waiting.pop(model.name))
                    took_s = time.monotonic() - started
                    logger.info("%s: %s after %.1f s", model.name, workers(model), took_s)
            if not waiting and await sidecar_process.healthy(settings):
                return models
            if time.monotonic() - started > START_TIMEOUT_S:
                late = ", ".join(waiting) or "sidecar"
                logs = "\n".join(f"{each.log} ends with:\n{tail(each.log)}" for each in processes)
                raise ServeError(f"{late}: not READY after {START_TIMEOUT_S:.0f} s; {logs}")
            await asyncio.sleep(POLL_INTERVAL_S)


async def check_load(settings: Settings, model: str, version: str) -> None:
    """Check that no worker died while it loaded a model.

    Raises:
        ServeError: If one died, with the handler's traceback.
    """
    if (found := await load_traceback(settings.log, model, version)) is None:
        return
    reason = found or f"it left no traceback; the log ends with:\n{tail(settings.log)}"
    raise ServeError(
        f"{model} {version}: a worker died while it loaded the model:\n{reason}\n"
        f"run: make train archive MODEL={model}; "
        "or leave the model out: make serve ENABLED_MODELS=<model>,<model>"
    )


async def load_traceback(log: Path, model: str, version: str, since: int = 0) -> str | None:
    """Return the traceback of a worker that died while it loaded a model, as `load_failure` does.

    The traceback may follow the report of the death, or be lost; the next attempt repeats it.
    """
    find_failure = partial(load_failure, log, model, version, since)
    if find_failure() is None:
        return None
    deadline = time.monotonic() + TRACEBACK_TIMEOUT_S
    while not find_failure() and time.monotonic() < deadline:
        await asyncio.sleep(POLL_INTERVAL_S)
    await asyncio.sleep(POLL_INTERVAL_S)  # it may have a second part
    return find_failure()


def check_config(model: ModelVersion, archive: ArchiveFile) -> None:
    """Compare the effective settings with the archive's: TorchServe silently skips invalid ones.

    ``handler`` is our own section; ``deviceType: gpu`` means cpu on a machine without a GPU.

    Raises:
        ServeError: If a setting differs.
    """
    differing = [
        f"{key}: expected {expected}, TorchServe has {model.settings.get(key, 'no such setting')}"
        for key, expected in archive.config.items()
        if key not in ("handler", "deviceType") and model.settings.get(key) != expected
    ]
    if differing:
        raise ServeError(
            f"{model.name} {model.version}: {CONFIG_FILE}: {'; '.join(differing)}; "
            f"correct archive/{model.name}/{CONFIG_FILE}, run: make archive MODEL={model.name}"
        )


def workers(model: ModelVersion) -> str:
    """Return how many of a model's workers are ready, as text."""
    return f"{model.ready_workers}/{model.min_workers} READY"


async def drain_all(settings: Settings) -> None:
    """Drain every version of a server's models, as far as it answers within DRAIN_TIMEOUT_S."""
    async with TorchServe.on_this_machine(settings, tokens=settings.token_auth) as torchserve:
        with suppress(TorchServeError):  # it is gone, or does not listen yet
            drains = [
                drain(torchserve, model.name, model.version, DRAIN_TIMEOUT_S)
                for model in await torchserve.models()
            ]
            await asyncio.gather(*drains, return_exceptions=True)
