"""Newer archives of the model store -> served versions, without a request lost."""

from __future__ import annotations

import asyncio
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import ArchiveError
from handlers.signature import verify_archive
from sidecar.torchserve import OK, ModelVersion, TorchServe, TorchServeError

LOAD_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0
# What a worker has taken from the queue is answered within this.
SERVICE_TIME_S = 1.0
POLL_INTERVAL_S = 0.2
SAMPLE_FILE = "sample_request.json"


class RolloutError(Exception):
    """A new version cannot take over."""


@dataclass(frozen=True)
class Rollout:
    """What became of one model.

    Attributes:
        old: The version that served before; None if there was none.
        new: The version that serves now; as ``old`` if there is nothing new, or it failed.
        error: Why it failed.
    """

    old: str | None
    new: str | None
    error: str | None = None

    @property
    def outcome(self) -> str:
        """In a word."""
        if self.error:
            return "failed"
        return "unchanged" if self.old == self.new else "replaced"


def sample_request(mar: Path) -> bytes:
    """The body that an archive brings as an example.

    Raises:
        RolloutError: If it brings none.
    """
    try:
        with zipfile.ZipFile(mar) as archive:
            return archive.read(SAMPLE_FILE)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RolloutError(f"{mar}: {SAMPLE_FILE}: {error}; run: make archive") from error


async def roll_out(torchserve: TorchServe, mar: Path) -> Rollout:
    """Let the version of an archive take over from the one that serves.

    It is switched to only after it has loaded and answered; until then the old one serves, and
    goes on if anything fails. Other versions than these two are left alone.

    Args:
        torchserve: Serves from the folder that the archive is in.
        mar: ``<model>.mar``.

    Raises:
        TorchServeError: If TorchServe does not say what it serves.
    """
    model = mar.stem
    served = [known.version for known in await torchserve.versions(model)]
    old = served[0] if served else None
    try:
        new = (await asyncio.to_thread(verify_archive, mar)).model_version
        if new == old:
            return Rollout(old, old)
        if new not in served:
            await torchserve.register(mar.name)
        try:
            await _wait_until_ready(torchserve, model, new)
            await _warm_up(torchserve, model, new, sample_request(mar))
            await torchserve.set_default(model, new)
        except (RolloutError, TorchServeError):
            if new not in served:
                await torchserve.unregister(model, new)
            raise
    except (ArchiveError, RolloutError, TorchServeError) as error:
        return Rollout(old, old, str(error))
    if old is not None:
        try:
            await _drain(torchserve, model, old)
            await torchserve.unregister(model, old)
        except (RolloutError, TorchServeError) as error:
            return Rollout(old, new, str(error))
    return Rollout(old, new)


async def _wait_until_ready(torchserve: TorchServe, model: str, version: str) -> None:
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    pids: dict[str, int] = {}
    while time.monotonic() < deadline:
        loading = await _version(torchserve, model, version)
        if loading.ready:
            return
        for worker, pid in loading.pids.items():
            # TorchServe does not tell of a death; it starts the worker again, for ever.
            if pids.get(worker, pid) != pid:
                raise RolloutError(
                    f"{model} {version}: a worker died while it loaded the model; "
                    "TorchServe's log has the traceback"
                )
            if pid > 0:
                pids[worker] = pid
        await asyncio.sleep(POLL_INTERVAL_S)
    raise RolloutError(f"{model} {version}: not READY after {LOAD_TIMEOUT_S:.0f} s")


async def _warm_up(torchserve: TorchServe, model: str, version: str, body: bytes) -> None:
    status, answer = await torchserve.send(model, body, version)
    if status != OK:
        raise RolloutError(
            f"{model} {version}: expected {SAMPLE_FILE} to be answered, got {status}: "
            f"{answer.decode(errors='replace')}"
        )


async def _drain(torchserve: TorchServe, model: str, version: str) -> None:
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while (await _version(torchserve, model, version)).pending_requests:
        if time.monotonic() > deadline:
            raise RolloutError(
                f"{model} {version}: still called after {DRAIN_TIMEOUT_S:.0f} s, so it stays loaded"
            )
        await asyncio.sleep(POLL_INTERVAL_S)
    await asyncio.sleep(SERVICE_TIME_S)


async def _version(torchserve: TorchServe, model: str, version: str) -> ModelVersion:
    known = await torchserve.version(model, version)
    if known is None:
        raise RolloutError(f"{model} {version}: somebody unregistered it meanwhile")
    return known
