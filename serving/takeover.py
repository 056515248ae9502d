"""Let a version take over on running hosts, one after the other, with a way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from tqdm import tqdm

from handlers.body_text import shown
from handlers.errors import ArchiveError
from handlers.signature import Signature, close, first_difference
from serving import contract, milvus, worker_memory
from serving.archive_file import ArchiveFile
from serving.archive_schema import Golden
from serving.client import TorchServe, TorchServeError
from serving.comparison import Limits, comparison_table
from serving.hosts import Host
from serving.lifecycle import load_traceback
from serving.model_store import staged_path
from serving.replay import Replay, replay
from serving.rollout import RolloutError, drain, loaded

PROBE_INTERVAL_S = 0.1
MAX_SHOWN_CHANGES = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Old:
    """A version that serves, and is to be replaced.

    Attributes:
        version: The version.
        archive: Its archive, the way back; None if that is lost.
    """

    version: str
    archive: ArchiveFile | None

    async def signature(self, torchserve: TorchServe, model: str) -> Signature | None:
        """Return its signature; without its archive, from the running server."""
        if self.archive is not None:
            return self.archive.signature
        described = await torchserve.signature(model)
        return Signature(**described) if described else None


@dataclass(frozen=True)
class Takeover:
    """A version that takes over, and its limits.

    Attributes:
        model: Name of the model.
        version: The version, staged in every host's store.
        requests: Recorded bodies to replay and to watch with, in addition to the golden rows.
        shadow: Only load, replay and compare the version, then remove it.
        watch_s: Seconds to watch each host after the switch.
        limits: What it is held to.
        index_uri: The item index; empty for none.
    """

    model: str
    version: str
    requests: Sequence[bytes]
    shadow: bool
    watch_s: float
    limits: Limits
    index_uri: str

    async def run(
        self, hosts: Sequence[Host], olds: Sequence[Old | None], undo: AsyncExitStack
    ) -> None:
        """Make the version the default of every host.

        Args:
            hosts: Hosts to change.
            olds: Version that serves at each host; None if there is none.
            undo: Receives the steps that lead back.

        Raises:
            ArchiveError: If the archive has no golden rows.
            RolloutError: If a step fails.
        """
        for host, old in zip(hosts, olds, strict=True):
            await self._run_on(host, old, undo)

    async def _run_on(self, host: Host, old: Old | None, undo: AsyncExitStack) -> None:
        torchserve, model, version = host.torchserve, self.model, self.version
        archive = ArchiveFile.read(staged_path(host.store, model, version), model)
        if old is not None:
            with _step(host, "contract"):
                await self._check_contract(torchserve, old, archive.signature)
        known = await torchserve.version(model, version)
        with _step(host, "load"):
            if known is None and host.log is not None:
                old_bytes = await self._worker_bytes(host, old.version) if old else 0
                worker_memory.check_room(archive.config.get("minWorkers", 1), old_bytes)
            await self._load(host, archive, undo)
        with _step(host, "golden rows"):
            await self._replay_golden_rows(torchserve, archive.golden)
        with _step(host, "replay"):
            requests, new = await self._replay(host, old, archive)
        if self.shadow:
            if known is None:
                await torchserve.unregister(model, version)
            return
        with _step(host, "switch"):
            old_version = None if old is None else old.version
            await undo.enter_async_context(_switched(torchserve, model, old_version, version))
        with _step(host, "watch"):
            answered = zip(requests, new.predictions, strict=True)
            await self._watch(host, [(body, got) for body, got in answered if got is not None])

    async def _check_contract(self, torchserve: TorchServe, old: Old, new: Signature) -> None:
        """Compare what the callers of the old version send and expect with the new version."""
        before = await old.signature(torchserve, self.model)
        if before is None:
            return
        changes = list(contract.changes(before, new))
        moved = contract.space_change(before, new)
        if moved and not (self.index_uri and await self._index_has(new)):
            changes.append(f"{moved}, and the item index does not hold the new space's items")
        if not changes:
            return
        listed = ", ".join(changes[:MAX_SHOWN_CHANGES])
        if len(changes) > MAX_SHOWN_CHANGES:
            listed += f" and {len(changes) - MAX_SHOWN_CHANGES} more"
        message = f"{self.model} {self.version} differs from {old.version} for callers: {listed}"
        if not self.limits.allow_contract_change and not self.shadow:
            raise RolloutError(f"{message}; if they are ready for it, add --allow-contract-change")
        logger.warning("%s", message)

    async def _index_has(self, signature: Signature) -> bool:
        towers = milvus.towers([signature.to_json()])
        found = await asyncio.to_thread(milvus.mismatches, self.index_uri, towers)
        return bool(towers) and not found

    async def _worker_bytes(self, host: Host, version: str) -> int:
        """Return the memory of a version's largest worker; 0 if it runs on another machine."""
        if host.log is None:
            return 0
        return worker_memory.largest_worker(await host.torchserve.version(self.model, version))

    async def _load(self, host: Host, archive: ArchiveFile, undo: AsyncExitStack) -> None:
        log = host.log if host.log is not None and host.log.exists() else None
        since = log.stat().st_size if log else 0
        try:
            await undo.enter_async_context(
                loaded(host.torchserve, self.model, self.version, archive.path)
            )
        except RolloutError as error:
            reason = log and await load_traceback(log, self.model, self.version, since)
            if not reason:
                raise
            last_line = reason.rpartition("\n")[2]
            raise RolloutError(
                f"{self.model} {self.version}: a worker died while it loaded the model: {last_line}"
            ) from error

    async def _replay_golden_rows(self, torchserve: TorchServe, golden: Golden) -> None:
        [done] = await replay(torchserve, self.model, [self.version], [golden.request])
        if done.errors:
            raise RolloutError(f"{self.model} {self.version}: {done.errors[0]}")
        difference = first_difference(golden.rows, golden.predictions, done.predictions[0])
        if difference:
            raise RolloutError(f"{self.model} {self.version}: {difference}")

    async def _replay(
        self, host: Host, old: Old | None, archive: ArchiveFile
    ) -> tuple[list[bytes], Replay]:
        """Send what callers send to both versions, and compare the answers.

        Returns:
            The requests, and the replay of the new version.
        """
        theirs = [*(old.archive.golden.requests if old and old.archive else ()), *self.requests]
        requests = list(dict.fromkeys([*archive.golden.requests, *theirs]))
        versions = [self.version] if old is None else [old.version, self.version]
        replays = await replay(
            host.torchserve,
            self.model,
            versions,
            requests,
            lambda so_far: self.limits.is_hopeless(so_far, len(requests)),
        )
        output = archive.signature.output["type"]
        sizes = [await self._worker_bytes(host, each) for each in versions]
        table = comparison_table(str(host), self.model, versions, replays, output, sizes)
        Console().print(table)
        self.limits.check(replays, output)
        worker_memory.check_use(f"{self.model} {self.version}", sizes)
        # A version may turn bad only after the first calls.
        await self._replay_golden_rows(host.torchserve, archive.golden)
        return requests, replays[-1]

    async def _watch(self, host: Host, answered: Sequence[tuple[bytes, Any]]) -> None:
        """Call as callers do, and fail as soon as a limit is sure to be exceeded.

        Args:
            host: The host.
            answered: Requests, and the new version's answers in the replay.
        """
        max_p99_ms = self.limits.max_p99_ms
        n_probes = max(1, round(self.watch_s / PROBE_INTERVAL_S))
        tolerated = int(self.limits.max_error_share * n_probes)
        done, slow, changed = Replay(), 0, 0
        for i in tqdm(range(n_probes), desc="watching", unit="request", leave=False, disable=None):
            body, expected = answered[i % len(answered)]
            await done.send(host.torchserve, self.model, body)
            if (got := done.predictions[-1]) is not None:
                slow += done.latencies_ms[-1] > max_p99_ms
                changed += not close(expected, got)
            if len(done.errors) + slow + changed > tolerated:
                example = f": {done.errors[0]}" if done.errors else ""
                if changed:
                    example += (
                        f"; the last was {shown(got)}, it was {shown(expected)} in the replay"
                    )
                raise RolloutError(
                    f"of {i + 1} requests {len(done.errors)} failed, {slow} took more than "
                    f"{max_p99_ms:g} ms (--max-p99-ms) and {changed} were answered otherwise than "
                    f"in the replay{example}"
                )
            await asyncio.sleep(PROBE_INTERVAL_S)
        p99_ms, failed = done.percentile_ms(99), len(done.errors)
        logger.info(
            "%s: watched %d requests: p99 %.1f ms, %d failed", host, n_probes, p99_ms, failed
        )


@contextmanager
def _step(host: Host, name: str) -> Iterator[None]:
    """Log a step, and name it in its failure."""
    logger.info("%s: %s", host, name)
    try:
        yield
    except (ArchiveError, RolloutError, TorchServeError) as error:
        raise RolloutError(f"{host}: {name}: {error}") from error


@asynccontextmanager
async def _switched(
    torchserve: TorchServe, model: str, old: str | None, new: str
) -> AsyncIterator[None]:
    """Make a version the default; switch back to the old one if the block fails."""
    try:
        await torchserve.set_default(model, new)
        yield
    except BaseException as error:
        if old is not None:
            try:
                await torchserve.set_default(model, old)
            except TorchServeError as second:
                raise RolloutError(
                    f"{error}; {torchserve.management_url}: cannot go back to {old}: {second}"
                ) from error
            with suppress(RolloutError, TorchServeError):  # it is unloaded in any case
                await drain(torchserve, model, new)
        raise
