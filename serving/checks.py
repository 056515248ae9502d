"""Checks of a machine and of the environment for what would keep a server from serving."""

from __future__ import annotations

import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import run_folder as instance
from serving import server as torchserve
from serving.budget import JAVA_BYTES, WORKER_BYTES, Budget
from serving.load import generator
from serving.ports import check_ports, is_loopback
from serving.settings import ROOT, ServeError, Settings

PROPERTIES = ROOT / "config.properties"
# TorchServe keeps a file open for each caller, Python for each worker and each of its own files.
MIN_OPEN_FILES = 4096
# For logs, in addition to the unpacked archives.
MIN_FREE_BYTES = 1_000_000_000
# A temporary folder that changed more recently may be in use.
STALE_AFTER_S = 86_400


@dataclass(frozen=True)
class Finding:
    """Something that needs attention.

    Attributes:
        what: Place, expectation and state.
        fix: Command or advice that puts it right.
        fatal: True if it keeps the server from serving as it should, or admits intruders.
    """

    what: str
    fix: str
    fatal: bool = True

    @classmethod
    def from_error(cls, error: Exception) -> Finding:
        """Split the message of an error, which by convention ends with the advice."""
        what, _, fix = str(error).partition("; ")
        return cls(what, fix)


@dataclass(frozen=True)
class Machine:
    """A machine and the server that is to run on it.

    Attributes:
        settings: Settings of the server.
        models: Names of the enabled models.
        configs: Content of ``model-config.yaml`` for each enabled model that the catalog has.
        artifacts_dir: Folder that training wrote to.
        budget: Cores and memory that are available.
    """

    settings: Settings
    models: Sequence[str]
    configs: Mapping[str, Mapping[str, Any]]
    artifacts_dir: Path
    budget: Budget

    @property
    def running(self) -> bool:
        """True if the server runs: it then holds its ports and its memory itself."""
        return instance.owner(self.settings.run_folder) is not None


@dataclass(frozen=True)
class Check:
    """A check of a machine.

    Attributes:
        passed: What holds if nothing was found, as a sentence.
        find: Yields what was found.
    """

    passed: str
    find: Callable[[Machine], Iterator[Finding]]


def java(machine: Machine) -> Iterator[Finding]:
    """Find a Java that is missing or too old."""
    try:
        path = torchserve.java()
    except ServeError as error:
        yield Finding.from_error(error)
        return
    if not os.access(path, os.X_OK):
        yield Finding(f"{path}: expected an executable Java, got none", "run: make setup")


def kill_command(machine: Machine) -> Iterator[Finding]:
    """Find out whether TorchServe lacks the command with which it ends workers."""
    if shutil.which("kill") is None:
        yield Finding(
            "kill is not on the PATH: TorchServe cannot remove a version (DELETE answers 500)",
            "apt-get install procps",
        )


def ports(machine: Machine) -> Iterator[Finding]:
    """Find ports that another process holds."""
    if not machine.running:
        try:
            check_ports(machine.settings)
        except ServeError as error:
            yield Finding.from_error(error)


def memory(machine: Machine) -> Iterator[Finding]:
    """Find too little memory for Java and all workers."""
    if machine.running:
        return
    workers = sum(config.get("minWorkers", 1) for config in machine.configs.values())
    needed = JAVA_BYTES + workers * WORKER_BYTES
    if needed > machine.budget.memory_bytes:
        yield Finding(
            f"memory: {workers} workers and Java may take {needed / 1e9:.1f} GB, "
            f"{machine.budget.memory_bytes / 1e9:.1f} GB are free",
            "serve fewer models: make serve ENABLED_MODELS=<model>,<model>; or fewer workers",
        )


def cores(machine: Machine) -> Iterator[Finding]:
    """Find models that keep more threads busy than there are cores."""
    for name, config in machine.configs.items():
        workers = config.get("minWorkers", 1)
        threads = (config.get("handler") or {}).get("threads", 1)
        if workers * threads > machine.budget.cores:
            yield Finding(
                f"{name}: {workers} workers x {threads} threads are more than "
                f"{machine.budget.cores} cores",
                f"make tune MODEL={name}",
                fatal=False,
            )


def open_files(machine: Machine) -> Iterator[Finding]:
    """Find a limit of open files that many concurrent callers would exceed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        fix = f"ulimit -n {MIN_OPEN_FILES}"
        if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
            fix = f"raise the hard limit (LimitNOFILE of a service, limits.conf), then {fix}"
        yield Finding(
            f"open files: expected a limit of {MIN_OPEN_FILES} or more, got {soft}",
            fix,
            fatal=False,
        )


def disk(machine: Machine) -> Iterator[Finding]:
    """Find too little room for the unpacked archives and the logs."""
    settings = machine.settings
    mars = (settings.model_store / f"{name}.mar" for name in machine.models)
    unpacked = 3 * sum(mar.stat().st_size for mar in mars if mar.exists())
    for folder, needed in (
        (settings.run_folder.parent, MIN_FREE_BYTES + unpacked),
        (settings.log_location, MIN_FREE_BYTES),
        (settings.model_store, MIN_FREE_BYTES),
    ):
        existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        if free < needed:
            yield Finding(
                f"{folder}: expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f} GB",
                "free some; old archives and logs are in model-store, registry and logs",
            )


def writable(machine: Machine) -> Iterator[Finding]:
    """Find a folder of logs or temporary files that cannot be written to."""
    try:
        instance.check_writable(machine.settings)
    except ServeError as error:
        yield Finding.from_error(error)


def leftovers(machine: Machine) -> Iterator[Finding]:
    """Find sockets and incomplete files of runs that were killed."""
    settings = machine.settings
    stale = [
        folder
        for folder in settings.run_folder.parent.glob("recmar-*")
        if folder.is_dir() and folder.stat().st_uid == os.getuid() and _is_abandoned(folder)
    ]
    stale += filter(_is_old, machine.artifacts_dir.glob("*/.writing-*"))
    stale += filter(_is_old, settings.model_store.glob(".*.part"))
    stale += filter(_is_old, settings.model_store.glob(".deploying"))
    for name in machine.models:  # a deploy stages <model>-<version>.mar
        stale += filter(_is_old, settings.model_store.glob(f"{name}-*.mar"))
    for path in sorted(stale):
        yield Finding(f"{path}: left by a run that was killed", f"rm -r {path}", fatal=False)


def _is_abandoned(folder: Path) -> bool:
    if (folder / "pid").exists():
        return instance.owner(folder) is None
    return _is_old(folder)


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > STALE_AFTER_S


def socket_path(machine: Machine) -> Iterator[Finding]:
    """Find a temporary folder whose path is too long for a socket."""
    try:
        instance.check_socket_path(machine.settings.run_folder)
    except ServeError as error:
        yield Finding.from_error(error)


def exposure(machine: Machine) -> Iterator[Finding]:
    """Find services that callers reach without a key, and archives that may come from elsewhere."""
    settings = machine.settings
    if not is_loopback(settings.inference_host) and not settings.token_auth:
        yield Finding(
            f"INFERENCE_HOST={settings.inference_host}: anyone who reaches port "
            f"{settings.inference_port} can query the models",
            "keep others out with a firewall, or run: make serve TOKEN_AUTH=1",
            fatal=False,
        )
    if not is_loopback(settings.metrics_host):
        yield Finding(
            f"METRICS_HOST={settings.metrics_host}: anyone who reaches port "
            f"{settings.metrics_port} can read names of models and features, and request counts",
            "admit only Prometheus with a firewall",
            fatal=False,
        )
    if not is_loopback(settings.sidecar_host) and settings.token_auth:
        yield Finding(
            f"SIDECAR_HOST={settings.sidecar_host}: the sidecar requires no token and uses "
            "its own for TorchServe",
            "leave SIDECAR_HOST at the loopback, or put a proxy with authentication before it",
            fatal=False,
        )
    text = PROPERTIES.read_text(encoding="utf-8")
    properties = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    if properties.get("enable_model_api") == "true" and properties.get("allowed_urls") != "none":
        yield Finding(
            "config.properties: enable_model_api=true with allowed_urls="
            f"{properties.get('allowed_urls', 'anything')}: anyone who reaches the management port "
            "can run code from elsewhere",
            "set allowed_urls=none",
        )


def load_generator(machine: Machine) -> Iterator[Finding]:
    """Find out whether wrk is missing for bench and tune."""
    if generator() != "wrk":
        yield Finding(
            "wrk is not installed; make bench and make tune measure with the slower pywrkr",
            "apt-get install wrk",
            fatal=False,
        )
