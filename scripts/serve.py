"""Serve the packaged models with TorchServe and the sidecar: ``python -m scripts.serve``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from archive.catalog import model_names
from handlers import logs
from handlers.errors import UserError
from serving import run_folder, server, sidecar_process
from serving.archive_file import ArchiveFile
from serving.client import TorchServe, TorchServeError
from serving.lifecycle import POLL_INTERVAL_S, drain_all, wait_until_ready, workers
from serving.milvus import served_mismatches
from serving.model_store import keep
from serving.model_version import ModelVersion
from serving.ports import check_ports
from serving.process import ManagedProcess
from serving.settings import ServeError, Settings
from serving.sidecar_process import Sidecar

STOP_TIMEOUT_S = 40.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

DESCRIPTION = """\
Serve the packaged models with TorchServe, and the sidecar next to it.

python -m scripts.serve           start in the foreground, until Ctrl-C or SIGTERM
python -m scripts.serve status    list the models of the running instance
python -m scripts.serve stop      stop it

Settings come from the environment, so `make serve INFERENCE_PORT=8180` passes them.
"""

logger = logging.getLogger(__name__)


def read_archives(settings: Settings) -> dict[str, ArchiveFile]:
    """Read the archives of the enabled models.

    Raises:
        ArchiveError: If an archive cannot be served.
        ServeError: If a model is unknown or named twice, or has no archive.
    """
    known = model_names()
    names = settings.enabled_models or known
    if len(set(names)) < len(names):
        raise ServeError(f"ENABLED_MODELS={','.join(names)}: expected each model once")
    missing = [name for name in names if not (settings.model_store / f"{name}.mar").is_file()]
    unknown = [name for name in missing if name not in known]
    if unknown:
        raise ServeError(
            f"ENABLED_MODELS: no model is called {', '.join(unknown)}; there are {', '.join(known)}"
        )
    if missing:
        raise ServeError(
            f"{settings.model_store} has no archive of {', '.join(missing)}; "
            f"run: make train archive MODEL={missing[0]}; "
            "or choose models: make serve ENABLED_MODELS=<model>,<model>"
        )
    return {name: ArchiveFile.read(settings.model_store / f"{name}.mar", name) for name in names}


def start(settings: Settings) -> int:
    """Serve until a signal asks to stop.

    Raises:
        ArchiveError: If an archive cannot be served.
        ServeError: If TorchServe or the sidecar cannot start, or ends on its own.
    """
    run_folder.check_writable(settings)
    with run_folder.claim(settings.run_folder):
        archives = read_archives(settings)
        check_ports(settings)
        for name, archive in archives.items():
            keep(archive.path, name, archive.version)
        with ExitStack() as stack:
            models = ",".join(f"{name}={name}.mar" for name in archives)
            torchserve = server.launch(settings, models)
            stack.callback(server.terminate, torchserve)
            # It imports its libraries while the models load.
            sidecar = Sidecar(settings, [*archives])
            stack.callback(sidecar.terminate)
            stack.callback(ignore_signals)
            logger.info("starting TorchServe, log: %s", settings.log)
            try:
                ready = wait_until_ready(torchserve, sidecar.process, settings, archives)
                print(table(settings, asyncio.run(ready)))
                name, archive = next(iter(archives.items()))
                print(f"\n{example(settings, name, archive.sample_request)}", flush=True)
                supervise(torchserve, sidecar, settings)
            except KeyboardInterrupt:
                finish_requests(sidecar, settings)
    logger.info("stopped")
    return 0


def supervise(torchserve: ManagedProcess, sidecar: Sidecar, settings: Settings) -> None:
    """Look after the processes until a signal asks to stop.

    Raises:
        ServeError: If TorchServe has ended, or the sidecar too often.
    """
    try:
        while True:
            torchserve.check()
            sidecar.keep()
            time.sleep(POLL_INTERVAL_S)
    except (ServeError, OSError):
        finish_requests(sidecar, settings)
        raise


def finish_requests(sidecar: Sidecar, settings: Settings) -> None:
    """Let sidecar and TorchServe answer the requests in flight, unless Ctrl-C is pressed again."""
    logger.info("stopping: waiting for the requests in flight; press Ctrl-C again to stop now")
    with suppress(KeyboardInterrupt):
        sidecar.stop()
        asyncio.run(drain_all(settings))


def ignore_signals() -> None:
    """Let nothing interrupt the end."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def table(settings: Settings, models: Sequence[ModelVersion]) -> str:
    """Format the models, their workers and their URLs as text of at most 80 columns."""
    rows = [("model", "version", "workers", settings.inference_url)]
    for model in models:
        pinned = "" if model.is_default else f"/{model.version}"
        path = f"/predictions/{model.name}{pinned}"
        rows.append((model.name, model.version, workers(model), path))
    rows.append(("sidecar", "", "", settings.sidecar_url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def example(settings: Settings, model: str, request: str) -> str:
    """Return a shell command that requests predictions of a model."""
    lines = []
    headers = "-H 'Content-Type: application/json'"
    if settings.token_auth:
        program = f"import json; print(json.load(open('{settings.key_file}'))['inference']['key'])"
        lines.append(f'KEY=$(python3 -c "{program}")')
        headers += ' -H "Authorization: Bearer $KEY"'
    url = f"{settings.inference_url}/predictions/{model}"
    lines.append(f"curl {headers} -d {shlex.quote(request)} {url}")
    return "\n".join(lines)


def status(settings: Settings) -> int:
    """List the models of the running instance; return 0 if all of them are READY."""
    pid = run_folder.owner(settings.run_folder)
    if pid is None:
        logger.info("no instance is running on port %d; run: make serve", settings.inference_port)
        return 1
    try:
        models, (healthy, findings) = asyncio.run(describe(settings))
    except TorchServeError as error:
        logger.info("the instance (pid %d) does not answer yet: %s", pid, error)
        return 1
    print(table(settings, models))
    for finding in findings:
        logger.warning("%s", finding)
    return 0 if healthy and models and all(model.ready for model in models) else 1


async def describe(settings: Settings) -> tuple[list[ModelVersion], tuple[bool, list[str]]]:
    """Return the models of the running instance and what its sidecar finds."""
    async with TorchServe.on_this_machine(settings) as torchserve:
        models = await torchserve.models()
        healthy, findings = await sidecar_process.findings(settings)
        if findings is None and settings.index_uri:  # an index that was written after the start
            names = [model.name for model in models if model.is_default]
            findings = await served_mismatches(torchserve, names, settings.index_uri)
    return models, (healthy, findings or [])


def stop(settings: Settings) -> int:
    """Stop the running instance and wait until it is gone.

    Raises:
        ServeError: If it is not gone after STOP_TIMEOUT_S.
    """
    pid = run_folder.owner(settings.run_folder)
    if pid is None:
        logger.info("no instance is running on port %d", settings.inference_port)
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while run_folder.owner(settings.run_folder) == pid:
        if time.monotonic() > deadline:
            raise ServeError(f"pid {pid} still runs after {STOP_TIMEOUT_S:.0f} s")
        time.sleep(POLL_INTERVAL_S)
    logger.info("stopped the instance on port %d (pid %d)", settings.inference_port, pid)
    return 0


COMMANDS: dict[str, Callable[[Settings], int]] = {"start": start, "status": status, "stop": stop}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.serve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    logs.to_stderr()
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="start")
    command = COMMANDS[parser.parse_args(argv).command]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            # Raised as Ctrl-C, which asyncio turns into a cancellation.
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return command(Settings.from_env(os.environ))
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
