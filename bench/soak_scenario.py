"""What happens in a soak: the models served, the requests sent, switches and killed workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil
import requests
from rich.progress import track

from archive import catalog, package
from archive.registry.store import Registry
from bench.soak_record import Disturbance, Record
from handlers.errors import ArchiveError, UserError
from serving.archive_file import ArchiveFile
from serving.testing import ROOT, Server
from sidecar.translate import TRANSLATIONS
from training import artifacts

REQUEST_TIMEOUT_S = 10.0
RECOVERY_TIMEOUT_S = 60.0
BODIES_PER_ENDPOINT = 9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A URL under load.

    Attributes:
        path: Path of the URL.
        model: Model that answers.
        url: The URL.
        bodies: Request bodies, as JSON.
    """

    path: str
    model: str
    url: str
    bodies: Sequence[bytes]


class Scenario:
    """The archives of a soak, and what is done with them.

    Args:
        models: Names of the models; all if empty.
        artifacts_dir: Folder that training wrote to.
        scratch: Folder for the model store and the registry.

    Attributes:
        store: Folder of the archives that are served.
        registry: Registry of all archives.
        versions: Versions of each model, newest first.

    Raises:
        UserError: If a model is unknown or has no artifacts, an archive cannot be packaged, or no
            model has two versions.
    """

    def __init__(self, models: Sequence[str], artifacts_dir: Path, scratch: Path) -> None:
        self.store = scratch / "store"
        self.registry = Registry(scratch / "registry")
        self.versions: dict[str, list[str]] = {}
        self._artifacts_dir = artifacts_dir
        names = models or catalog.model_names()
        for name in track(names, "packaging", transient=True, disable=not sys.stderr.isatty()):
            model = catalog.get(name)
            newest = artifacts.find(model.artifacts, None, artifacts_dir).name
            self._package(model, newest, self.store)
            for older in artifacts.versions(model.artifacts, artifacts_dir)[-2:-1]:
                try:
                    self._package(model, older, scratch / "older")
                except (ArchiveError, artifacts.ArtifactError) as error:
                    logger.warning("%s: keeps its version: %s", name, error)
        if not self.switching:
            [name, *_] = self.versions
            raise UserError(
                f"{artifacts_dir}: expected a model with two versions to switch between; "
                f"run: make train MODEL={name}"
            )

    def _package(self, model: catalog.Model, version: str, store: Path) -> None:
        folders = package.Config(store=store, artifacts_dir=self._artifacts_dir)
        self.registry.register(model.name, version, package.package(model, version, folders))
        self.versions.setdefault(model.name, []).append(version)

    @property
    def switching(self) -> list[str]:
        """Models with a second version."""
        return [model for model, versions in self.versions.items() if len(versions) > 1]

    def endpoints(self, server: Server) -> list[Endpoint]:
        """Return the URL of every model, and of every sidecar route whose model is served."""
        found = []
        golden = {m: ArchiveFile.read(self.store / f"{m}.mar").golden for m in self.versions}
        for model, each in golden.items():
            path = f"/predictions/{model}"
            bodies = each.requests[:BODIES_PER_ENDPOINT]
            found.append(Endpoint(path, model, server.inference_url + path, bodies))
        for route, translation in TRANSLATIONS.items():
            model = translation.model
            if model in golden:
                rows = golden[model].rows[:BODIES_PER_ENDPOINT]
                bodies = [orjson.dumps(translation.request(row)) for row in rows]
                found.append(Endpoint(route, model, server.sidecar_url + route, bodies))
        return found

    def switch(self, server: Server, model: str, record: Record) -> Disturbance:
        """Deploy the version of a model that does not serve."""
        at_s = record.now()
        versions = self.versions[model]
        versions.reverse()
        deploy = subprocess.run(
            [
                *(sys.executable, "-m", "scripts.deploy", "--model", model),
                *("--version", versions[0], "--watch-s", "2", "--ungated", "a soak"),
                "--allow-contract-change",  # each training run has a vector space of its own
                *("--registry", self.registry.folder, "--model-store", self.store),
                *("--service-url", server.management_url),
                *("--inference-url", server.inference_url),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        error = None if deploy.returncode == 0 else deploy.stderr.strip().rpartition("\n")[2]
        return Disturbance(at_s, "switch", model, record.now() - at_s, error)


def kill_worker(server: Server, model: str, record: Record) -> Disturbance:
    """Kill a worker of a model and wait until all its workers are READY again."""
    at_s = record.now()

    def workers() -> list[dict[str, Any]]:
        url = f"{server.management_url}/models/{model}"
        return list(requests.get(url, timeout=REQUEST_TIMEOUT_S).json()[0]["workers"])

    # A worker that is not READY may have the pid -1, and kill(-1) signals every process.
    ready = [worker["pid"] for worker in workers() if worker["status"] == "READY"]
    if not ready:
        return Disturbance(at_s, "kill", model, 0.0, "no worker was READY")
    victim = ready[0]
    os.kill(victim, signal.SIGKILL)
    while record.now() - at_s < RECOVERY_TIMEOUT_S:
        time.sleep(0.2)
        if all(one["status"] == "READY" and one["pid"] != victim for one in workers()):
            return Disturbance(at_s, "kill", model, record.now() - at_s, None)
    error = f"the worker was not replaced within {RECOVERY_TIMEOUT_S:.0f} s"
    return Disturbance(at_s, "kill", model, record.now() - at_s, error)


def memory(server: Server) -> dict[str, int]:
    """Return the PSS in bytes of each part of an instance: Java, workers and sidecar."""
    found: Counter[str] = Counter()
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            part = "workers" if "model_service_worker" in command else "Java"
            part = "sidecar" if "-m sidecar" in command else part
            found[part] += process.memory_full_info().pss
        except psutil.NoSuchProcess:  # just killed
            continue
    return dict(found)
