"""Newer archives of the model store -> served versions, without a request lost."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import ArchiveError, UserError
from handlers.signature import verify_archive
from serving.client import OK, ModelVersion, TorchServe, TorchServeError

LOAD_TIMEOUT_S = 120.0
DRAIN_TIMEOUT_S = 30.0
# What a worker has taken from the queue is answered within this.
SERVICE_TIME_S = 1.0
POLL_INTERVAL_S = 0.2
SAMPLE_FILE = "sample_request.json"


class RolloutError(UserError):
    """A new version cannot take over."""


@dataclass(frozen=True)
class Rollout:
    """What became of one model.

    Attributes:
        old: The version that served before; None if there was none, or TorchServe did not say.
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


@contextmanager
def changing(store: Path) -> Iterator[None]:
    """Be the only one who changes what is served from a model store while the block runs.

    Raises:
        RolloutError: If another process does, or there is no such folder.
    """
    try:
        folder = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RolloutError(f"{store}: expected the model store, got: {error.strerror}") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RolloutError(
                f"{store}: another deploy or reload is under way; try again when it is done"
            ) from error
        yield
    finally:
        os.close(folder)


async def roll_out(torchserve: TorchServe, mar: Path) -> Rollout:
    """Let the version of an archive take over from the one that serves.

    It is switched to only after it has loaded and answered; until then the old one serves, and
    goes on if anything fails. Other versions than these two are left alone.

    Args:
        torchserve: Serves from the folder that the archive is in.
        mar: ``<model>.mar``.
    """
    model, before = mar.stem, None
    try:
        old = await torchserve.default_version(model)
        before = None if old is None else old.version
        new = (await asyncio.to_thread(verify_archive, mar)).model_version
        if new == before:
            return Rollout(before, new)
        async with loaded(torchserve, model, new, mar):
            await torchserve.set_default(model, new)
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
    """Load a version beside the one that serves; if the block fails it is gone again.

    One that is loaded already is used, and stays.

    Args:
        torchserve: Serves from the folder that the archive is in.
        model: Its name.
        version: Of the archive.
        mar: The archive, needed no more when it is loaded: TorchServe unpacks it.

    Raises:
        RolloutError: If it cannot be loaded, or does not answer.
        TorchServeError: If TorchServe does not do what it is asked.
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
    except BaseException:  # Ctrl-C too
        if registering is not None:
            with suppress(TorchServeError):  # the first error counts
                # TorchServe would carry out a request that is broken off, after the next one.
                await registering
            with suppress(TorchServeError):
                await torchserve.unregister(model, version)
        raise


async def retire(torchserve: TorchServe, model: str, version: str) -> None:
    """Remove a version that is no longer the default, when it is not called any more.

    Raises:
        RolloutError: If it still is after DRAIN_TIMEOUT_S, and so stays.
        TorchServeError: If TorchServe does not do what it is asked.
    """
    await drain(torchserve, model, version)
    await torchserve.unregister(model, version)


async def drain(torchserve: TorchServe, model: str, version: str) -> None:
    """Wait until a version's queue is empty and what its workers have taken can be answered.

    Raises:
        RolloutError: If it is still called after DRAIN_TIMEOUT_S.
        TorchServeError: If TorchServe does not say.
    """
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while (await _version(torchserve, model, version)).pending_requests:
        if time.monotonic() > deadline:
            raise RolloutError(
                f"{model} {version}: still called after {DRAIN_TIMEOUT_S:.0f} s, so it stays loaded"
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


async def _version(torchserve: TorchServe, model: str, version: str) -> ModelVersion:
    known = await torchserve.version(model, version)
    if known is None:
        raise RolloutError(f"{model} {version}: somebody unregistered it meanwhile")
    return known
