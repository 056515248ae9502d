"""Replace the served version of a model by another one without losing a request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from handlers.errors import ArchiveError, UserError
from serving.archive_file import SAMPLE_FILE, ArchiveFile, sample_request
from serving.client import OK, TorchServe, TorchServeError
from serving.model_store import keep
from serving.model_version import ModelVersion

LOAD_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0
# Requests that a worker has taken from the queue are answered within this time.
SERVICE_TIME_S = 1.0
POLL_INTERVAL_S = 0.2


class RolloutError(UserError):
    """A version cannot take over."""


@dataclass(frozen=True)
class Rollout:
    """The outcome of a rollout of one model.

    Attributes:
        old: Version that served before; None if there was none or TorchServe did not answer.
        new: Version that serves now; equals ``old`` if there is no newer one or the rollout failed.
        error: Reason of the failure.
    """

    old: str | None
    new: str | None
    error: str | None = None

    @property
    def outcome(self) -> str:
        """``failed``, ``unchanged`` or ``replaced``."""
        if self.error:
            return "failed"
        return "unchanged" if self.old == self.new else "replaced"


@contextmanager
def changing(store: Path) -> Iterator[None]:
    """Exclude other processes from changing what a model store serves while the block runs.

    Raises:
        RolloutError: If another process is changing it, or there is no such folder.
    """
    # The lock is on the folder itself: it works for a read-only store and leaves no file behind.
    try:
        folder = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RolloutError(f"{store}: expected the model store, got: {error.strerror}") from error
    try:
        if not lock_descriptor(folder, blocking=False):
            raise RolloutError(
                f"{store}: another deploy or reload is under way; try again when it is done"
            )
        yield
    finally:
        os.close(folder)


async def roll_out(torchserve: TorchServe, mar: Path) -> Rollout:
    """Load the version of an archive, switch to it and remove the version that served before.

    The switch follows only after the new version has loaded and answered. Until then the old one
    serves, and it keeps serving if anything fails. Further versions are left alone.

    Args:
        torchserve: Client of the server that serves from the archive's folder.
        mar: The archive, ``<model>.mar``.
    """
    model, before = mar.stem, None
    try:
        old = await torchserve.default_version(model)
        before = None if old is None else old.version
        new = (await asyncio.to_thread(ArchiveFile.read, mar, model)).version
        if new == before:
            return Rollout(before, new)
        async with loaded(torchserve, model, new, mar):
            await torchserve.set_default(model, new)
        await asyncio.to_thread(keep, mar, model, new)
    except (ArchiveError, RolloutError, TorchServeError) as error:
        return Rollout(before, before, str(error))
    if before is not None:
        try:
            await retire(torchserve, model, before)
        except (RolloutError, TorchServeError) as error:
            return Rollout(before, new, str(error))
    return Rollout(before, new)


@asynccontextmanager
async def loaded(
    torchserve: TorchServe, model: str, version: str, mar: Path
) -> AsyncIterator[None]:
    """Load a version next to the one that serves; unload it if the block fails.

    A version that is already loaded is used as it is and stays.

    Args:
        torchserve: Client of the server that serves from the archive's folder.
        model: Name of the model.
        version: Version of the archive.
        mar: The archive; not needed once loaded, because TorchServe unpacks it.

    Raises:
        ArchiveError: If it has no sample request.
        RolloutError: If it cannot be loaded, or does not answer.
        TorchServeError: If TorchServe refuses.
    """
    known = await torchserve.version(model, version)
    registering: asyncio.Future[None] | None = None
    try:
        if known is None:
            registering = asyncio.ensure_future(torchserve.register(mar.name))
            await asyncio.shield(registering)
        await _wait_until_ready(torchserve, model, version)
        await _warm_up(torchserve, model, version, sample_request(mar))
        yield
    except BaseException:  # including Ctrl-C
        if registering is not None:
            with suppress(TorchServeError):  # the first error is the one to report
                # TorchServe completes a registration even if its request is broken off.
                await registering
            with suppress(TorchServeError):
                await torchserve.unregister(model, version)
        raise


async def retire(torchserve: TorchServe, model: str, version: str) -> None:
    """Drain and remove a version that is no longer the default.

    Raises:
        RolloutError: If it is still called after DRAIN_TIMEOUT_S, so that it stays.
        TorchServeError: If TorchServe refuses.
    """
    await drain(torchserve, model, version)
    await torchserve.unregister(model, version)


async def drain(
    torchserve: TorchServe, model: str, version: str, timeout_s: float = DRAIN_TIMEOUT_S
) -> None:
    """Wait until a version's queue is empty and its workers have answered what they took.

    Args:
        torchserve: Client of the server.
        model: Name of the model.
        version: Its version.
        timeout_s: Seconds until the queue must be empty.

    Raises:
        RolloutError: If the queue is not empty by then.
        TorchServeError: If TorchServe refuses.
    """
    deadline = time.monotonic() + timeout_s
    while (await _version(torchserve, model, version)).pending_requests:
        if time.monotonic() > deadline:
            raise RolloutError(
                f"{model} {version}: still called after {timeout_s:.0f} s, so it stays loaded"
            )
        await asyncio.sleep(POLL_INTERVAL_S)
    await asyncio.sleep(SERVICE_TIME_S)


async def _wait_until_ready(torchserve: TorchServe, model: str, version: str) -> None:
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    pids: dict[str, int] = {}
    while time.monotonic() < deadline:
        loading = await _version(torchserve, model, version)
        if loading.ready:
            return
        for worker, pid in loading.pids.items():
            # TorchServe does not report a death: it restarts the worker again and again.
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
            f"{model} {version}: expected an answer to {SAMPLE_FILE}, got {status}: "
            f"{answer.decode(errors='replace')}"
        )


async def _version(torchserve: TorchServe, model: str, version: str) -> ModelVersion:
    known = await torchserve.version(model, version)
    if known is None:
        raise RolloutError(f"{model} {version}: another process unregistered it")
    return known
