"""Find what would keep this machine from serving: ``python -m scripts.doctor``.

It looks at what `make serve` would do with the same environment, and changes nothing.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from archive import catalog
from handlers.errors import ArchiveError
from handlers.signature import GOLDEN_FILE, sha256
from serving import run_folder as instance
from serving import server as torchserve
from serving.archive_file import ArchiveFile
from serving.budget import JAVA_BYTES, WORKER_BYTES, Budget
from serving.load import generator
from serving.ports import check_ports
from serving.settings import ROOT, ServeError, Settings
from training import artifacts
from training.artifacts import ArtifactError

PROPERTIES = ROOT / "config.properties"
# TorchServe keeps a file open for each caller, Python's side for each worker and each of its own.
MIN_OPEN_FILES = 4096
# For logs, beside what archives take when they are unpacked.
MIN_FREE_BYTES = 1_000_000_000
# Temporary folders that are younger may be in use.
STALE_AFTER_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Config:
    """Check this machine and the configuration before `make serve`.

    Settings come from the environment, as those of `make serve`.

    Attributes:
        artifacts_dir: Folder that training wrote to.
    """

    artifacts_dir: Path = artifacts.ARTIFACTS


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        what: Where, what was expected, what there is.
        mend: What to do.
        fatal: Whether it keeps the instance from serving as it should, or lets others in.
    """

    what: str
    mend: str
    fatal: bool = True

    @classmethod
    def of(cls, error: Exception) -> Finding:
        """One whose message ends with what to do, as all of ours do."""
        what, _, mend = str(error).partition("; ")
        return cls(what, mend)


@dataclass(frozen=True)
class Patient:
    """What is looked at.

    Attributes:
        settings: Of the instance.
        env: Where the settings come from.
        models: Names of the enabled models.
        artifacts_dir: Folder that training wrote to.
        budget: What there is of the machine.
    """

    settings: Settings
    env: Mapping[str, str]
    models: Sequence[str]
    artifacts_dir: Path
    budget: Budget

    @property
    def running(self) -> bool:
        """Whether the instance runs: then its ports and its memory are taken by itself."""
        return instance.owner(self.settings.run_folder) is not None

    def configs(self) -> dict[str, dict[str, Any]]:
        """The ``model-config.yaml`` of each enabled model that has one."""
        known = catalog.model_names()
        return {name: catalog.get(name).config for name in self.models if name in known}


def java(patient: Patient) -> Iterator[Finding]:
    """Java starts, and is new enough."""
    try:
        path = torchserve.java()
    except ServeError as error:
        yield Finding.of(error)
        return
    if not os.access(path, os.X_OK):
        yield Finding(f"{path}: expected Java, got nothing to run", "run: make setup")


def kill_command(patient: Patient) -> Iterator[Finding]:
    """TorchServe finds the command by which it ends workers."""
    if shutil.which("kill") is None:
        yield Finding(
            "kill is not on the PATH: TorchServe cannot remove a version (DELETE answers 500)",
            "apt-get install procps",
        )


def ports(patient: Patient) -> Iterator[Finding]:
    """The ports are free, unless by this instance."""
    if not patient.running:
        try:
            check_ports(patient.settings)
        except ServeError as error:
            yield Finding.of(error)


def archives(patient: Patient) -> Iterator[Finding]:
    """Each enabled model has an archive that is whole and of the newest artifacts."""
    for name in patient.models:
        mar = patient.settings.model_store / f"{name}.mar"
        if not mar.exists():
            train = f"make train archive MODEL={name}"
            known = name in catalog.model_names()
            mend = train if known else f"choose from {', '.join(catalog.model_names())}"
            yield Finding(f"{mar} is missing", mend)
            continue
        try:
            archive = ArchiveFile.read(mar)
        except ArchiveError as error:
            yield Finding.of(error)
            continue
        if name in catalog.model_names():
            differences = list(outdated(archive, patient.artifacts_dir))
            if differences:
                yield Finding(
                    f"{mar} ({archive.version}) is outdated: {', '.join(differences)}",
                    f"make archive MODEL={name}, or deploy a newer version",
                    fatal=False,
                )


def outdated(archive: ArchiveFile, artifacts_dir: Path) -> Iterator[str]:
    """In what an archive differs from what it would be packaged from now."""
    signature = archive.signature
    model = catalog.get(archive.name)
    if archive.config != model.config:
        yield f"archive/{model.name}/{catalog.CONFIG_FILE} was edited"
    sources = {
        name: catalog.ROOT / name
        for name in signature.files
        if name.startswith("handlers/") and not name.endswith("_handler.py")
    }
    sources[signature.handler] = model.handler_path
    changed = [name for name, path in sources.items() if _sha256(path) != signature.files[name]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield f"{changed[0]}{more} changed"
    versions = artifacts.versions(model.artifacts, artifacts_dir)
    folder = artifacts_dir / model.artifacts
    if versions and archive.version != versions[-1]:
        yield f"{folder} has the newer {versions[-1]}"
    if archive.version in versions:
        # An archive's golden rows may be those of one of the run's several models.
        for name in sorted(signature.files.keys() - {GOLDEN_FILE}):
            path = folder / archive.version / name
            if path.is_file() and _sha256(path) != signature.files[name]:
                yield f"{path} is another file"


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()) if path.is_file() else ""


def artifact_folders(patient: Patient) -> Iterator[Finding]:
    """The newest artifacts of each enabled model are whole."""
    known = catalog.model_names()
    runs = dict.fromkeys(catalog.get(name).artifacts for name in patient.models if name in known)
    for run in runs:
        if artifacts.versions(run, patient.artifacts_dir):
            try:
                artifacts.find(run, root=patient.artifacts_dir)
            except ArtifactError as error:
                yield Finding.of(error)


def memory(patient: Patient) -> Iterator[Finding]:
    """There is memory for Java and all workers."""
    if patient.running:
        return
    workers = sum(config.get("minWorkers", 1) for config in patient.configs().values())
    needed = JAVA_BYTES + workers * WORKER_BYTES
    if needed > patient.budget.memory_bytes:
        yield Finding(
            f"memory: {workers} workers and Java may take {needed / 1e9:.1f} GB, "
            f"{patient.budget.memory_bytes / 1e9:.1f} GB are free",
            "serve fewer models: make serve ENABLED_MODELS=<model>,<model>; or fewer workers",
        )


def cores(patient: Patient) -> Iterator[Finding]:
    """No model keeps more threads busy than there are cores."""
    for name, config in patient.configs().items():
        workers = config.get("minWorkers", 1)
        threads = (config.get("handler") or {}).get("threads", 1)
        if workers * threads > patient.budget.cores:
            yield Finding(
                f"{name}: {workers} workers x {threads} threads are more than "
                f"{patient.budget.cores} cores",
                f"make tune MODEL={name}",
                fatal=False,
            )


def open_files(patient: Patient) -> Iterator[Finding]:
    """Many callers at once do not run into the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES:
        mend = f"ulimit -n {MIN_OPEN_FILES}"
        if hard != resource.RLIM_INFINITY and hard < MIN_OPEN_FILES:
            mend = f"raise the hard limit (LimitNOFILE of a service, limits.conf), then {mend}"
        yield Finding(
            f"open files: expected a limit of {MIN_OPEN_FILES} or more, got {soft}",
            mend,
            fatal=False,
        )


def leftovers(patient: Patient) -> Iterator[Finding]:
    """No killed run left sockets, or half of what it wrote."""
    settings = patient.settings
    temp = settings.run_folder.parent
    stale = [
        folder
        for folder in temp.glob("recmar-*")
        if folder.is_dir() and folder.stat().st_uid == os.getuid() and _stale(folder)
    ]
    stale += filter(_old, patient.artifacts_dir.glob("*/.writing-*"))
    stale += filter(_old, settings.model_store.glob(".*.part"))
    stale += filter(_old, settings.model_store.glob(".deploying"))
    for name in patient.models:  # what deploy stages
        stale += filter(_old, settings.model_store.glob(f"{name}-*.mar"))
    for path in sorted(stale):
        yield Finding(f"{path}: left by a run that was killed", f"rm -r {path}", fatal=False)


def _stale(folder: Path) -> bool:
    if (folder / "pid").exists():
        return instance.owner(folder) is None
    return _old(folder)


def _old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > STALE_AFTER_S


def socket_path(patient: Patient) -> Iterator[Finding]:
    """The temporary folder's path leaves room for the name of a socket."""
    try:
        instance.check_socket_path(patient.settings.run_folder)
    except ServeError as error:
        yield Finding.of(error)


def exposure(patient: Patient) -> Iterator[Finding]:
    """Nobody gets in who is not asked for a key, and no archive comes from elsewhere."""
    settings = patient.settings
    if not _is_loopback(settings.inference_host) and not settings.token_auth:
        yield Finding(
            f"INFERENCE_HOST={settings.inference_host}: whoever reaches port "
            f"{settings.inference_port} can ask the models",
            "let a firewall keep others out, or: make serve TOKEN_AUTH=1",
            fatal=False,
        )
    if not _is_loopback(settings.metrics_host):
        yield Finding(
            f"METRICS_HOST={settings.metrics_host}: whoever reaches port {settings.metrics_port} "
            "reads names of models and features, and how often they are asked for",
            "let a firewall keep out all but Prometheus",
            fatal=False,
        )
    if not _is_loopback(settings.sidecar_host):
        if not patient.env.get("RELOAD_API_KEY"):
            yield Finding(
                f"SIDECAR_HOST={settings.sidecar_host}: whoever reaches port "
                f"{settings.sidecar_port} can have models replaced",
                "set RELOAD_API_KEY in the environment",
            )
        if settings.token_auth:
            yield Finding(
                f"SIDECAR_HOST={settings.sidecar_host}: the sidecar asks for no token, and "
                "answers with TorchServe's",
                "leave SIDECAR_HOST at the loopback, or put a proxy with authentication before it",
                fatal=False,
            )
    text = PROPERTIES.read_text(encoding="utf-8")
    properties = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    if properties.get("enable_model_api") == "true" and properties.get("allowed_urls") != "none":
        yield Finding(
            "config.properties: enable_model_api=true with allowed_urls="
            f"{properties.get('allowed_urls', 'anything')}: who reaches the management port can "
            "have code from elsewhere run",
            "set allowed_urls=none",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def disk(patient: Patient) -> Iterator[Finding]:
    """There is room to unpack the archives and for the logs."""
    settings = patient.settings
    mars = (settings.model_store / f"{name}.mar" for name in patient.models)
    unpacked = 3 * sum(mar.stat().st_size for mar in mars if mar.exists())
    for folder, needed in (
        (settings.run_folder.parent, MIN_FREE_BYTES + unpacked),
        (settings.log_location, MIN_FREE_BYTES),
        (settings.model_store, MIN_FREE_BYTES),
    ):
        there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        free = shutil.disk_usage(there).free
        if free < needed:
            yield Finding(
                f"{folder}: expected {needed / 1e9:.1f} GB of free disk, got {free / 1e9:.1f} GB",
                "make room; archives and logs of old runs are in model-store, registry and logs",
            )


def load_generator(patient: Patient) -> Iterator[Finding]:
    """There is wrk for bench and tune."""
    if generator() != "wrk":
        yield Finding(
            "wrk is not installed; make bench and make tune measure with the slower pywrkr",
            "apt-get install wrk",
            fatal=False,
        )


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    java,
    kill_command,
    ports,
    archives,
    artifact_folders,
    memory,
    cores,
    open_files,
    disk,
    leftovers,
    socket_path,
    exposure,
    load_generator,
)


def table(findings: Mapping[str, Sequence[Finding]]) -> Table:
    """What each check found, at most 80 columns wide.

    Args:
        findings: By what is true where there is none.
    """
    shown = Table(box=box.SIMPLE_HEAD, show_header=False, width=80)
    shown.add_column()
    shown.add_column(overflow="fold")  # a path is to be copied whole
    for good, found in findings.items():
        if not found:
            shown.add_row("ok", good)
        for finding in found:
            mend = f"\n-> {finding.mend}" if finding.mend else ""
            shown.add_row("error" if finding.fatal else "warning", finding.what + mend)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 1 if something keeps the instance from serving."""
    config = tyro.cli(Config, prog="python -m scripts.doctor", args=argv)
    try:
        settings = Settings.from_env(os.environ)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    models = list(dict.fromkeys(settings.enabled_models)) or catalog.model_names()
    patient = Patient(settings, os.environ, models, config.artifacts_dir, Budget.read())
    findings = {str(check.__doc__): list(check(patient)) for check in CHECKS}
    Console(highlight=False, markup=False).print(table(findings))
    return int(any(finding.fatal for found in findings.values() for finding in found))


if __name__ == "__main__":
    sys.exit(main())
