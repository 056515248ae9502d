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
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from archive.registry.deployment import adopt, commit, staged, way_back
from archive.registry.documents import CHALLENGER, CHAMPION, PREVIOUS
from archive.registry.store import Registry, RegistryConfig
from handlers import logs
from handlers.errors import UserError
from serving.client import TorchServeError
from serving.comparison import Limits
from serving.hosts import Host, find_hosts
from serving.model_store import stored_version
from serving.replay import read_requests
from serving.rollout import RolloutError, changing, retire
from serving.settings import Settings
from serving.takeover import Old, Takeover

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
        requests: JSON lines, each the body of a request, to replay and to watch with, in addition
            to the golden rows of both versions.
        allow_contract_change: Deploy even if the features or the output differ from the version
            that serves.
        ungated: Reason to deploy a version that the gate has failed or never judged; recorded in
            the registry.
        no_way_back: Deploy even if the archive of the version that serves is lost.
        watch_s: Seconds to watch each host after the switch.
        timeout_s: Seconds until an unanswered request counts as failed.
        max_p99_ms: Milliseconds that 99% of the requests must stay below.
        max_error_share: Share of the requests in the watch that may fail, take longer, or be
            answered otherwise than before.
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
    allow_contract_change: bool = False
    ungated: str = ""
    no_way_back: bool = False
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
    settings = Settings.from_env(os.environ)
    hosts = find_hosts(
        settings,
        service_urls=config.service_url,
        inference_urls=config.inference_url,
        model_stores=config.model_store,
        key_files=config.key_file,
        timeout_s=config.timeout_s,
    )
    requests = read_requests(config.requests) if config.requests else []
    registry = config.open_registry()
    model = config.model
    stores = list(dict.fromkeys(host.store.resolve() for host in hosts))
    async with AsyncExitStack() as stack:
        for store in stores:
            stack.enter_context(changing(store))
        for host in hosts:
            await stack.enter_async_context(host.torchserve)
            if (served := await host.torchserve.default_version(model)) and not config.shadow:
                adopt(registry, model, served.version, host.store)
        entry = registry.entry(model, PREVIOUS if config.rollback else config.version)
        version = entry.version
        logs.about(model=model, version=version)
        if not config.shadow:
            registry.check_gate(model, version, config.ungated)
        takeover = Takeover(
            model=model,
            version=version,
            requests=requests,
            shadow=config.shadow,
            watch_s=config.watch_s,
            limits=Limits(
                config.max_p99_ms,
                config.max_error_share,
                # A rollback goes back to a contract that the callers know.
                allow_contract_change=config.allow_contract_change or config.rollback,
            ),
            index_uri=settings.index_uri,
        )
        aliases = registry.aliases(model)
        try:
            for store in stores:
                stack.enter_context(staged(registry, model, version, store))
            olds = [await _old(config, registry, host, version, aliases) for host in hosts]
            async with AsyncExitStack() as undo:
                await takeover.run(hosts, olds, undo)
                if not config.shadow:
                    commit(
                        registry,
                        model,
                        version,
                        olds=[old.version for old in olds if old],
                        stores=stores,
                        rollback=config.rollback,
                        ungated=config.ungated,
                    )
        except BaseException:  # including Ctrl-C
            for host in hosts:
                await _log_serving(host, model)
            raise
        if not config.shadow:
            for host, old in zip(hosts, olds, strict=True):
                await _finish(host, model, old.version if old else None, version)


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


async def _old(
    config: Config, registry: Registry, host: Host, version: str, aliases: Mapping[str, str]
) -> Old | None:
    """Return the version to replace: that which serves, or did before a deploy that was killed.

    A deploy of the same version that was killed left the version that it was to replace in the
    store or as the champion; or, killed while it drained that one, as the previous champion.

    Raises:
        RolloutError: If its archive is lost.
    """
    model = config.model
    served = [known.version for known in await host.torchserve.versions(model)]
    candidates = (
        *served[:1],
        stored_version(host.store, model),
        aliases.get(CHAMPION),
        aliases.get(PREVIOUS),
    )
    old = next((old for old in candidates if old in served and old != version), None)
    if old is None:
        return None
    try:
        return Old(old, way_back(registry, model, old, host.store))
    except RolloutError as error:
        if not config.no_way_back and not config.shadow:
            raise
        logger.warning("%s: %s", host, error)
        return Old(old, None)


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
