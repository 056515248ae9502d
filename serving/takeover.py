"""Let a version take over on running hosts, one after the other, with a way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from handlers.errors import ArchiveError
from handlers.signature import first_difference
from serving.archive_file import ArchiveFile, Golden
from serving.client import TorchServe, TorchServeError
from serving.hosts import Host
from serving.model_store import staged_path
from serving.replay import TOP_K, Distance, Replay, replay
from serving.rollout import RolloutError, drain, loaded

PROBE_INTERVAL_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Takeover:
    """A version that takes over, and its limits.

    Attributes:
        model: Name of the model.
        version: The version, staged in every host's store.
        requests: Bodies to replay and to watch with; None for the golden rows.
        shadow: Only load, replay and compare the version, then remove it.
        watch_s: Seconds to watch each host after the switch.
        max_p99_ms: Milliseconds that 99% of the requests must stay below.
        max_error_share: Share of the requests in the watch that may fail or take longer.
    """

    model: str
    version: str
    requests: Sequence[bytes] | None
    shadow: bool
    watch_s: float
    max_p99_ms: float
    max_error_share: float

    async def run(
        self, hosts: Sequence[Host], olds: Sequence[str | None], undo: AsyncExitStack
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

    async def _run_on(self, host: Host, old: str | None, undo: AsyncExitStack) -> None:
        torchserve, model, version = host.torchserve, self.model, self.version
        archive = ArchiveFile.read(staged_path(host.store, model, version))
        requests = self.requests or archive.golden.requests
        known = await torchserve.version(model, version)
        with _step(host, "load"):
            await undo.enter_async_context(loaded(torchserve, model, version, archive.path))
        with _step(host, "golden rows"):
            await self._replay_golden_rows(torchserve, archive.golden)
        with _step(host, "replay"):
            versions = [version] if old is None else [old, version]
            replays = await replay(torchserve, model, versions, requests)
            output = archive.signature.output["type"]
            Console().print(self._report(host, output, versions, replays))
            self._check(replays)
        if self.shadow:
            if known is None:
                await torchserve.unregister(model, version)
            return
        with _step(host, "switch"):
            await undo.enter_async_context(_switched(torchserve, model, old, version))
        with _step(host, "watch"):
            answered = zip(requests, replays[-1].predictions, strict=True)
            await self._watch(host, [body for body, got in answered if got is not None])

    async def _replay_golden_rows(self, torchserve: TorchServe, golden: Golden) -> None:
        [done] = await replay(torchserve, self.model, [self.version], [golden.request])
        if done.errors:
            raise RolloutError(f"{self.model} {self.version}: {done.errors[0]}")
        difference = first_difference(golden.rows, golden.predictions, done.predictions[0])
        if difference:
            raise RolloutError(f"{self.model} {self.version}: {difference}")

    def _report(
        self, host: Host, output: str, versions: Sequence[str], replays: Sequence[Replay]
    ) -> Table:
        """Compare the versions as a table."""
        n = len(replays[0].latencies_ms)
        table = Table(
            f"{self.model}, {n} requests", *versions, box=box.SIMPLE_HEAD, title=str(host)
        )
        table.add_row("not answered", *(str(len(each.errors)) for each in replays))
        for percent in (50, 99):
            latencies = (f"{each.percentile_ms(percent):.1f}" for each in replays)
            table.add_row(f"p{percent} ms", *latencies)
        if len(replays) == 2:
            distance = Distance.between(replays[0], replays[1], output)
            table.add_row("score difference, mean", "", f"{distance.mean_difference:.5f}")
            table.add_row("score difference, max", "", f"{distance.max_difference:.5f}")
            table.add_row(f"top-{TOP_K} overlap", "", f"{distance.top_k_overlap:.3f}")
            table.add_row("Kendall tau", "", f"{distance.kendall_tau:.3f}")
        return table

    def _check(self, replays: Sequence[Replay]) -> None:
        """Compare the new version's replay with the limits and with the old version's."""
        new = replays[-1]
        tolerated = len(replays[0].errors) if len(replays) == 2 else 0
        if len(new.errors) > tolerated or len(new.errors) == len(new.predictions):
            raise RolloutError(
                f"{len(new.errors)} of {len(new.predictions)} requests were not answered, "
                f"{tolerated} by the old version: {new.errors[-1]}"
            )
        if (p99_ms := new.percentile_ms(99)) > self.max_p99_ms:
            raise RolloutError(
                f"p99: expected at most {self.max_p99_ms:g} ms (--max-p99-ms), got {p99_ms:.0f} ms"
            )

    async def _watch(self, host: Host, bodies: Sequence[bytes]) -> None:
        """Call as callers do, and fail as soon as a limit is sure to be exceeded."""
        n_probes = max(1, round(self.watch_s / PROBE_INTERVAL_S))
        tolerated = int(self.max_error_share * n_probes)
        done, slow = Replay(), 0
        for i in tqdm(range(n_probes), desc="watching", unit="request", leave=False, disable=None):
            await done.send(host.torchserve, self.model, bodies[i % len(bodies)])
            slow += done.predictions[-1] is not None and done.latencies_ms[-1] > self.max_p99_ms
            if len(done.errors) + slow > tolerated:
                first = f": {done.errors[0]}" if done.errors else ""
                raise RolloutError(
                    f"{len(done.errors)} of {i + 1} requests failed and {slow} took more than "
                    f"{self.max_p99_ms:g} ms (--max-p99-ms){first}"
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
