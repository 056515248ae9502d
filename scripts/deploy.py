"""Let a registered version take over on running servers: ``python -m scripts.deploy``.

One host after the other: load the version beside the one that serves, replay its golden rows,
replay requests on both, switch, watch. Only when every host has passed, the new archive takes its
place in the model stores, the registry promotes it, and the old version is drained and removed. A
failure before that, or Ctrl-C, takes every host back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from archive.registry.documents import CHALLENGER, CHAMPION, PREVIOUS, RegistryError
from archive.registry.store import Registry, RegistryConfig
from handlers import logs
from handlers.errors import ArchiveError, UserError
from handlers.signature import first_difference, verify_archive
from serving.archive_file import ArchiveFile, Golden
from serving.client import TorchServe, TorchServeError
from serving.replay import TOP_K, Distance, Replay, RequestsError, read_requests, replay
from serving.rollout import RolloutError, changing, drain, loaded, retire
from serving.settings import ServeError, Settings

PROBE_INTERVAL_S = 0.1
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SCRATCH = ".deploying"  # a folder in each store

logger = logging.getLogger(__name__)


class DeployError(UserError):
    """A step failed; the message says where, which and why."""


@dataclass(frozen=True, kw_only=True)
class Config(RegistryConfig):
    """Deploy a registered version of a model to running servers.

    Without --service-url to the one that `make status` shows, which the environment tells.

    Attributes:
        model: Its name.
        version: A version of the registry, or an alias.
        rollback: Deploy the version that served before.
        shadow: Load it, replay and compare, and remove it again.
        service_url: Management API of each host: http://host:8081.
        inference_url: Predictions of each host, by default at INFERENCE_PORT of the same host.
        model_store: The folder that a host serves from; one for all hosts or one for each. By
            default MODEL_STORE.
        key_file: TorchServe's key_file.json, where it asks for tokens; one or one for each host.
        requests: JSON lines, each the body of a request, to replay and to watch with; the golden
            rows by default.
        watch_s: Seconds to watch each host after the switch.
        timeout_s: Seconds until a request that is not answered counts as failed.
        max_p99_ms: Milliseconds that 99% of the requests must stay below.
        max_error_share: Share of the requests in the watch that may fail or take longer.
    """

    model: str
    version: str = CHALLENGER
    rollback: bool = False
    shadow: bool = False
    service_url: tuple[str, ...] = ()
    inference_url: tuple[str, ...] = ()
    model_store: tuple[Path, ...] = ()
    key_file: tuple[Path, ...] = ()
    requests: Path | None = None
    watch_s: float = 30.0
    timeout_s: float = 10.0
    max_p99_ms: float = 500.0
    max_error_share: float = 0.01


@dataclass(frozen=True)
class Host:
    """A running server.

    Attributes:
        torchserve: Its client.
        store: The folder that it serves from.
    """

    torchserve: TorchServe
    store: Path

    def __str__(self) -> str:
        """The URL of its management API."""
        return self.torchserve.management_url


def find_hosts(config: Config) -> list[Host]:
    """The hosts that the flags name, or else the environment.

    Raises:
        DeployError: If the flags do not fit together.
        ServeError: If a variable makes no sense.
    """
    local = Settings.from_env(os.environ)
    urls = [url.rstrip("/") for url in config.service_url] or [local.management_url]
    for url in (*urls, *config.inference_url):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise DeployError(f"{url}: expected a URL such as http://host:8081")
    if len(set(urls)) < len(urls):
        raise DeployError(f"--service-url {' '.join(urls)}: expected each host once")
    tunnels = [url for url in urls if urlsplit(url).hostname in LOOPBACK]
    if (
        config.service_url
        and not config.inference_url
        and tunnels not in ([], [local.management_url])
    ):
        raise DeployError(
            f"--service-url {' '.join(tunnels)}: where do its callers reach it? Add --inference-url"
        )
    local_keys = [local.key_file] if not config.service_url and local.key_file.exists() else []
    inference_urls = config.inference_url or [
        f"{urlsplit(url).scheme}://{urlsplit(url).hostname}:{local.inference_port}" for url in urls
    ]
    stores = config.model_store or [local.model_store]
    key_files: Sequence[Path | None] = [*config.key_file] or local_keys or [None]
    n = len(urls)
    for flag, values in (("model-store", stores), ("key-file", key_files)):
        if len(values) not in (1, n):
            raise DeployError(f"--{flag}: expected one, or one for each of {n} hosts")
    if len(set(inference_urls)) < n or len(inference_urls) > n:
        raise DeployError(
            f"--inference-url: expected a URL of its own for each of {n} hosts, "
            f"got {' '.join(inference_urls)}"
        )
    return [
        Host(
            TorchServe(
                inference_urls[i].rstrip("/"),
                url,
                key_files[i % len(key_files)],
                config.timeout_s,
            ),
            stores[i % len(stores)],
        )
        for i, url in enumerate(urls)
    ]


async def deploy(config: Config) -> None:
    """Deploy as the flags say.

    Raises:
        DeployError: If a step fails; every host is back at the version that served before.
        RegistryError: If the version is not registered.
        RequestsError: If the file of requests cannot be used.
        RolloutError: If another deploy or reload is under way.
        TorchServeError: If a host does not answer at the start.
    """
    for flag, value, most, expected in (
        ("--watch-s", config.watch_s, sys.float_info.max, "0 or more"),
        ("--max-p99-ms", config.max_p99_ms, sys.float_info.max, "0 or more"),
        ("--max-error-share", config.max_error_share, 1.0, "0 to 1"),
    ):
        if not 0 <= value <= most:
            raise DeployError(f"{flag} {value}: expected a number, {expected}")
    if config.rollback and config.version != CHALLENGER:
        raise DeployError(f"--rollback: expected no --version, got {config.version}")
    hosts = find_hosts(config)
    bodies = read_requests(config.requests) if config.requests else None
    registry = config.open_registry()
    model = config.model
    version = registry.entry(model, PREVIOUS if config.rollback else config.version).version
    logs.about(model=model, version=version)
    stores = list(dict.fromkeys(host.store.resolve() for host in hosts))
    async with AsyncExitStack() as stack:
        for store in stores:
            stack.enter_context(changing(store))
        for host in hosts:
            await stack.enter_async_context(host.torchserve)
        aliases = registry.aliases(model)
        olds = [await _old_version(host, model, version, aliases) for host in hosts]
        try:
            for store in stores:
                stack.enter_context(_staged(registry, model, version, store))
            async with AsyncExitStack() as undo:
                await _take_over(config, hosts, olds, version, bodies, undo)
                if not config.shadow:
                    _commit(config, registry, stores, version)
        except BaseException:  # Ctrl-C too
            for host in hosts:
                with suppress(TorchServeError):
                    serving = await host.torchserve.default_version(model)
                    found = serving.version if serving else "has no version that"
                    logger.info("%s: %s %s serves", host, model, found)
            raise
        if config.shadow:
            return
        for host, old in zip(hosts, olds, strict=True):
            print(f"{host}: {model} {version} serves" + (f", after {old}" if old else ""))
            if old is not None:
                logger.info("%s: drain and remove %s %s", host, model, old)
                try:
                    await retire(host.torchserve, model, old)
                except (RolloutError, TorchServeError) as error:
                    logger.warning("%s: drain: %s", host, error)


async def _old_version(
    host: Host, model: str, version: str, aliases: Mapping[str, str]
) -> str | None:
    """What serves at a host, or did before a deploy of this version that was killed.

    Killed before its end, that deploy left the one that it was to replace in the store or as the
    champion; killed while it drained that one, as the registry's previous champion.
    """
    served = [known.version for known in await host.torchserve.versions(model)]
    candidates = (
        *served[:1],
        _stored_version(host.store, model),
        aliases.get(CHAMPION),
        aliases.get(PREVIOUS),
    )
    return next((old for old in candidates if old in served and old != version), None)


def _stored_version(store: Path, model: str) -> str | None:
    """The version that the next start serves."""
    with suppress(ArchiveError):
        return verify_archive(store / f"{model}.mar").model_version
    return None


@contextmanager
def _staged(registry: Registry, model: str, version: str, store: Path) -> Iterator[None]:
    """The archive in a store, as ``<model>-<version>.mar``, while the block runs."""
    # TorchServe takes archives from the store itself only; a part must not lie there as one.
    scratch = store / SCRATCH
    mar = _versioned(store, model, version)
    try:
        logger.info("%s: fetch %s %s", store, model, version)
        try:
            os.replace(registry.fetch(model, version, scratch), mar)
        except (OSError, RegistryError) as error:
            raise DeployError(f"{store}: fetch: {error}") from error
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        mar.unlink(missing_ok=True)


def _versioned(store: Path, model: str, version: str) -> Path:
    return store / f"{model}-{version}.mar"


async def _take_over(
    config: Config,
    hosts: Sequence[Host],
    olds: Sequence[str | None],
    version: str,
    bodies: Sequence[bytes] | None,
    undo: AsyncExitStack,
) -> None:
    """Let a version become every host's default; what leads back is left to ``undo``."""
    model = config.model
    for host, old in zip(hosts, olds, strict=True):
        torchserve, mar = host.torchserve, _versioned(host.store, model, version)
        golden = ArchiveFile.read(mar).golden
        requests = bodies or golden.requests
        known = await torchserve.version(model, version)
        with _step(host, "load"):
            await undo.enter_async_context(loaded(torchserve, model, version, mar))
        with _step(host, "golden rows"):
            await _replay_golden_rows(torchserve, model, version, golden)
        with _step(host, "replay"):
            versions = [version] if old is None else [old, version]
            done = await replay(torchserve, model, versions, requests)
            _report(host, config, verify_archive(mar).output["type"], versions, done)
            _check(config, done)
        if config.shadow:
            if known is None:
                await torchserve.unregister(model, version)
            continue
        with _step(host, "switch"):
            await undo.enter_async_context(_switched(torchserve, model, old, version))
        with _step(host, "watch"):
            answers = zip(requests, done[-1].predictions, strict=True)
            await _watch(host, config, [body for body, got in answers if got is not None])


@contextmanager
def _step(host: Host, name: str) -> Iterator[None]:
    """Say what is done, and where it failed."""
    logger.info("%s: %s", host, name)
    try:
        yield
    except (ArchiveError, RolloutError, TorchServeError) as error:
        raise DeployError(f"{host}: {name}: {error}") from error


async def _replay_golden_rows(
    torchserve: TorchServe, model: str, version: str, golden: Golden
) -> None:
    [done] = await replay(torchserve, model, [version], [golden.request])
    if done.errors:
        raise RolloutError(f"{model} {version}: {done.errors[0]}")
    difference = first_difference(golden.rows, golden.predictions, done.predictions[0])
    if difference:
        raise RolloutError(f"{model} {version}: {difference}")


def _report(
    host: Host, config: Config, output: str, versions: Sequence[str], done: Sequence[Replay]
) -> None:
    n = len(done[0].latencies_ms)
    table = Table(f"{config.model}, {n} requests", *versions, box=box.SIMPLE_HEAD, title=str(host))
    table.add_row("not answered", *(str(len(each.errors)) for each in done))
    for percent in (50, 99):
        latencies = (f"{each.percentile_ms(percent):.1f}" for each in done)
        table.add_row(f"p{percent} ms", *latencies)
    if len(done) == 2:
        distance = Distance.between(done[0], done[1], output)
        table.add_row("score difference, mean", "", f"{distance.mean_difference:.5f}")
        table.add_row("score difference, max", "", f"{distance.max_difference:.5f}")
        table.add_row(f"top-{TOP_K} overlap", "", f"{distance.top_k_overlap:.3f}")
        table.add_row("Kendall tau", "", f"{distance.kendall_tau:.3f}")
    Console().print(table)


def _check(config: Config, done: Sequence[Replay]) -> None:
    """Hold what the new version did against the limits and against the old one."""
    new = done[-1]
    tolerated = len(done[0].errors) if len(done) == 2 else 0
    if len(new.errors) > tolerated or len(new.errors) == len(new.predictions):
        raise RolloutError(
            f"{len(new.errors)} of {len(new.predictions)} requests were not answered, by the old "
            f"version {tolerated}: {new.errors[-1]}"
        )
    if (p99_ms := new.percentile_ms(99)) > config.max_p99_ms:
        raise RolloutError(
            f"p99: expected at most {config.max_p99_ms:g} ms (--max-p99-ms), got {p99_ms:.0f} ms"
        )


@asynccontextmanager
async def _switched(
    torchserve: TorchServe, model: str, old: str | None, new: str
) -> AsyncIterator[None]:
    """Make a version the default; if the block fails, the old one again."""
    try:
        await torchserve.set_default(model, new)
        yield
    except BaseException as error:
        if old is not None:
            try:
                await torchserve.set_default(model, old)
            except TorchServeError as again:
                raise DeployError(
                    f"{error}; {torchserve.management_url}: cannot go back to {old} either: {again}"
                ) from error
            with suppress(RolloutError, TorchServeError):  # it goes in any case
                await drain(torchserve, model, new)
        raise


async def _watch(host: Host, config: Config, bodies: Sequence[bytes]) -> None:
    """Call as callers do, and give up as soon as the limits are sure to be crossed."""
    n_probes = max(1, round(config.watch_s / PROBE_INTERVAL_S))
    tolerated = int(config.max_error_share * n_probes)
    done, slow = Replay(), 0
    for i in tqdm(range(n_probes), desc="watching", unit="request", leave=False, disable=None):
        await done.send(host.torchserve, config.model, bodies[i % len(bodies)])
        slow += done.predictions[-1] is not None and done.latencies_ms[-1] > config.max_p99_ms
        if len(done.errors) + slow > tolerated:
            told = f": {done.errors[0]}" if done.errors else ""
            raise RolloutError(
                f"{len(done.errors)} of {i + 1} requests failed and {slow} took more than "
                f"{config.max_p99_ms:g} ms (--max-p99-ms){told}"
            )
        await asyncio.sleep(PROBE_INTERVAL_S)
    p99_ms, failed = done.percentile_ms(99), len(done.errors)
    logger.info("%s: watched %d requests: p99 %.1f ms, %d failed", host, n_probes, p99_ms, failed)


def _commit(config: Config, registry: Registry, stores: Sequence[Path], version: str) -> None:
    """Make the version the one that the next start serves, and the registry's champion."""
    model = config.model
    old_mar = stores[0] / f"{model}.mar"
    old = _stored_version(stores[0], model)
    try:
        if old not in (None, version) and not config.rollback:
            # The way back has to be there, also to a version that no registry has seen.
            if old not in {e.version for e, _ in registry.listing() if e.model == model}:
                registry.register(model, old, old_mar)
            registry.promote(model, old)
        with ExitStack() as undo:
            for store in stores:
                undo.enter_context(_replaced(store, model, version))
            registry.rollback(model) if config.rollback else registry.promote(model, version)
    except (OSError, RegistryError) as error:
        raise DeployError(f"commit: {error}") from error


@contextmanager
def _replaced(store: Path, model: str, version: str) -> Iterator[None]:
    """Let a store's next start serve a version; if the block fails, what it did before."""
    mar, before = store / f"{model}.mar", store / SCRATCH / f"{model}.mar"
    if mar.exists():
        shutil.copyfile(mar, before)
    os.replace(_versioned(store, model, version), mar)
    try:
        yield
    except BaseException:
        if before.exists():
            os.replace(before, mar)
        else:
            mar.unlink()
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, prog="python -m scripts.deploy", args=argv)
    logs.to_stderr()
    # A supervisor's SIGTERM and a connection that is lost go back as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup says
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(deploy(config))
    except (
        ArchiveError,
        DeployError,
        RegistryError,
        RequestsError,
        RolloutError,
        ServeError,
        TorchServeError,
    ) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
