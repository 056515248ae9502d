"""Wait until a starting server is ready; drain one that is about to stop."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from serving import sidecar_process
from serving.archive_file import CONFIG_FILE, ArchiveFile
from serving.client import OK, TorchServe, TorchServeError
from serving.model_version import ModelVersion
from serving.process import ManagedProcess, tail
from serving.rollout import SERVICE_TIME_S, drain
from serving.server import load_failure, refusal
from serving.settings import ServeError, Settings

START_TIMEOUT_S = 120.0  # without progress
DRAIN_TIMEOUT_S = 10.0
TRACEBACK_TIMEOUT_S = 6.0
POLL_INTERVAL_S = 0.2

logger = logging.getLogger(__name__)


async def wait_until_ready(
    torchserve: ManagedProcess,
    sidecar: ManagedProcess,
    settings: Settings,
    archives: Mapping[str, ArchiveFile],
) -> list[ModelVersion]:
    """Wait until every model has its workers and the sidecar answers; log each model's time.

    It waits as long as the processes advance, however slow the machine is.

    Args:
        torchserve: TorchServe's process.
        sidecar: The sidecar's process.
        settings: Settings of the server.
        archives: Archives that it loads, by model.

    Raises:
        ServeError: If a model fails to load, its configuration is not in effect, or nothing has
            advanced for START_TIMEOUT_S.
    """
    started = advanced = time.monotonic()
    progress: object = None
    waiting = dict(archives)
    async with TorchServe.on_this_machine(settings, tokens=settings.token_auth) as client:
        while True:
            for process in (torchserve, sidecar):
                process.check()
            for name, archive in waiting.items():
                await check_load(settings, name, archive.version)
            models: list[ModelVersion] = []
            with suppress(TorchServeError):  # TorchServe does not listen yet
                models = await client.models()
            for model in models:
                if model.ready and model.name in waiting:
                    check_config(model, waiting.pop(model.name))
                    took_s = time.monotonic() - started
                    logger.info("%s: %s after %.1f s", model.name, workers(model), took_s)
            status = None if waiting else await sidecar_process.ping(settings)
            if status == OK:
                return models
            # Answering our questions takes CPU time too, and is no progress.
            used_s = (
                _cpu_s(torchserve, and_its_own=not models)
                if waiting
                else _cpu_s(sidecar, and_its_own=status is None)
            )
            before, progress = progress, ([model.ready_workers for model in models], used_s)
            if progress != before:
                advanced = time.monotonic()
            elif time.monotonic() - advanced > START_TIMEOUT_S:
                late = ", ".join(waiting) or "sidecar"
                logs = "\n".join(
                    f"{each.log} ends with:\n{tail(each.log)}" for each in (torchserve, sidecar)
                )
                raise ServeError(
                    f"{late}: not READY, and no progress for {START_TIMEOUT_S:.0f} s; {logs}"
                )
            await asyncio.sleep(POLL_INTERVAL_S)


def _cpu_s(process: ManagedProcess, *, and_its_own: bool) -> int:
    """Return the seconds of CPU time that the children of a process took, and its own if asked."""
    used_s = 0.0
    with suppress(psutil.Error):  # a process is gone
        parent = psutil.Process(process.process.pid)
        for each in [*parent.children(recursive=True), *([parent] if and_its_own else [])]:
            used_s += sum(each.cpu_times()[:2])
    return int(used_s)


async def check_load(settings: Settings, model: str, version: str) -> None:
    """Check that TorchServe unpacked a model, and that no worker died while it loaded it.

    Raises:
        ServeError: If it did not, with the cause; if a worker died, with the handler's traceback.
    """
    if reason := refusal(settings.log, f"{model}.mar"):
        free = shutil.disk_usage(settings.run_folder).free
        raise ServeError(
            f"{model} {version}: TorchServe could not unpack {model}.mar in {settings.run_folder}: "
            f"{reason}; {free / 1e6:.1f} MB are free there: free some space, or set TMPDIR to a "
            f"larger folder; the log is {settings.log}"
        )
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
    with suppress(TorchServeError, TimeoutError):  # it is gone, or does not listen yet
        async with (
            asyncio.timeout(DRAIN_TIMEOUT_S + SERVICE_TIME_S),
            TorchServe.on_this_machine(settings, tokens=settings.token_auth) as torchserve,
        ):
            drains = [
                drain(torchserve, model.name, model.version, DRAIN_TIMEOUT_S)
                for model in await torchserve.models()
            ]
            await asyncio.gather(*drains, return_exceptions=True)
