"""Let a registered version take over on running servers: ``python -m scripts.deploy``.

One host after the other: load the version next to the one that serves, replay its golden rows,
replay requests to both, switch, watch. Only when every host has passed, the new archive takes its
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from archive.registry.documents import CHALLENGER, CHAMPION, PREVIOUS, RegistryError
from archive.registry.store import Registry, RegistryConfig
from handlers import logs
from handlers.errors import UserError
from serving.client import TorchServeError
from serving.hosts import Host, find_hosts
from serving.model_store import SCRATCH, replaced, staged_path, stored_version
from serving.replay import read_requests
from serving.rollout import RolloutError, changing, retire
from serving.settings import Settings
from serving.takeover import Takeover

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(RegistryConfig):
    """Deploy a registered version of a model to running servers.

    Without --service-url, to the server that `make status` shows, found by the environment.

    Attributes:
        model: Name of the model.
        version: A version of the registry, or an alias.
        rollback: Deploy the version that served before.
        shadow: Load, replay and compare the version, then remove it again.
        service_url: Management API of each host: http://host:8081.
        inference_url: Predictions of each host, by default at INFERENCE_PORT of the same host.
        model_store: Folder that a host serves from; one for all hosts or one for each. By
            default MODEL_STORE.
        key_file: TorchServe's key_file.json, if it requires tokens; one or one for each host.
        requests: JSON lines, each the body of a request, to replay and to watch with; the golden
            rows by default.
        watch_s: Seconds to watch each host after the switch.
        timeout_s: Seconds until an unanswered request counts as failed.
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

    def check(self) -> None:
        """Check the flags.

        Raises:
            UserError: If one is out of bounds, or two contradict each other.
        """
        for flag, value, most, expected in (
            ("--watch-s", self.watch_s, sys.float_info.max, "0 or more"),
            ("--max-p99-ms", self.max_p99_ms, sys.float_info.max, "0 or more"),
            ("--max-error-share", self.max_error_share, 1.0, "0 to 1"),
        ):
            if not 0 <= value <= most:
                raise UserError(f"{flag} {value}: expected a number, {expected}")
        if self.rollback and self.version != CHALLENGER:
            raise UserError(f"--rollback: expected no --version, got {self.version}")


async def deploy(config: Config) -> None:
    """Deploy as the flags say.

    Raises:
        UserError: If a step fails; every host is back at the version that served before.
    """
    config.check()
    hosts = find_hosts(
        Settings.from_env(os.environ),
        service_urls=config.service_url,
        inference_urls=config.inference_url,
        model_stores=config.model_store,
        key_files=config.key_file,
        timeout_s=config.timeout_s,
    )
    bodies = read_requests(config.requests) if config.requests else None
    registry = config.open_registry()
    model = config.model
    version = registry.entry(model, PREVIOUS if config.rollback else config.version).version
    logs.about(model=model, version=version)
    takeover = Takeover(
        model=model,
        version=version,
        requests=bodies,
        shadow=config.shadow,
        watch_s=config.watch_s,
        max_p99_ms=config.max_p99_ms,
        max_error_share=config.max_error_share,
    )
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
                await takeover.run(hosts, olds, undo)
                if not config.shadow:
                    _commit(config, registry, stores, version)
        except BaseException:  # including Ctrl-C
            for host in hosts:
                await _log_serving(host, model)
            raise
        if not config.shadow:
            for host, old in zip(hosts, olds, strict=True):
                await _finish(host, model, old, version)


async def _log_serving(host: Host, model: str) -> None:
    with suppress(TorchServeError):
        found = await host.torchserve.default_version(model)
        if found:
            logger.info("%s: %s %s serves", host, model, found.version)
        else:
            logger.info("%s: %s has no version that serves", host, model)


async def _finish(host: Host, model: str, old: str | None, version: str) -> None:
    """Report the new version and retire the old one."""
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
    """Return the version to replace: that which serves, or did before a deploy that was killed.

    A deploy of the same version that was killed left the version that it was to replace in the
    store or as the champion; or, killed while it drained that one, as the previous champion.
    """
    served = [known.version for known in await host.torchserve.versions(model)]
    candidates = (
        *served[:1],
        stored_version(host.store, model),
        aliases.get(CHAMPION),
        aliases.get(PREVIOUS),
    )
    return next((old for old in candidates if old in served and old != version), None)


@contextmanager
def _staged(registry: Registry, model: str, version: str, store: Path) -> Iterator[None]:
    """Keep the archive in a store, as ``<model>-<version>.mar``, while the block runs."""
    # TorchServe loads archives from the store itself only; an unfinished copy must not lie there.
    scratch = store / SCRATCH
    mar = staged_path(store, model, version)
    try:
        logger.info("%s: fetch %s %s", store, model, version)
        try:
            os.replace(registry.fetch(model, version, scratch), mar)
        except (OSError, RegistryError) as error:
            raise RolloutError(f"{store}: fetch: {error}") from error
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        mar.unlink(missing_ok=True)


def _commit(config: Config, registry: Registry, stores: Sequence[Path], version: str) -> None:
    """Make the version the one that the next start serves, and the registry's champion."""
    model = config.model
    old_mar = stores[0] / f"{model}.mar"
    old = stored_version(stores[0], model)
    try:
        if old not in (None, version) and not config.rollback:
            # The way back must exist, even to a version that was never registered.
            if old not in {e.version for e, _ in registry.listing() if e.model == model}:
                registry.register(model, old, old_mar)
            registry.promote(model, old)
        with ExitStack() as undo:
            for store in stores:
                undo.enter_context(replaced(store, model, version))
            registry.rollback(model) if config.rollback else registry.promote(model, version)
    except (OSError, RegistryError) as error:
        raise RolloutError(f"commit: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, prog="python -m scripts.deploy", args=argv)
    logs.to_stderr()
    # A supervisor's SIGTERM and a closed terminal go back as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        asyncio.run(deploy(config))
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
