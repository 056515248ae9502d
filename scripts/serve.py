"""Serve the packaged models with TorchServe, and the sidecar beside it.

python -m scripts.serve           start in the foreground, until Ctrl-C or SIGTERM
python -m scripts.serve status    list the models of the running instance
python -m scripts.serve stop      stop it

Settings come from the environment, so `make serve INFERENCE_PORT=8180` passes them.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
import yaml

from archive.catalog import model_names
from handlers import logs
from handlers.errors import ArchiveError
from handlers.signature import verify_archive
from serving import run_folder as instance
from serving import server as torchserve
from serving import sidecar_process as sidecar
from serving.ports import check_ports
from serving.process import Child, tail
from serving.server import Management, ModelVersion
from serving.settings import ServeError, Settings

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
TRACEBACK_TIMEOUT_S = 6.0
POLL_INTERVAL_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CONFIG_FILE = "model-config.yaml"
SAMPLE_FILE = "sample_request.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """What is to be known of a .mar before TorchServe loads it.

    Attributes:
        name: As in the URL.
        version: As in the URL.
        config: Its model-config.yaml.
        sample_request: A body that the model answers, as JSON.
    """

    name: str
    version: str
    config: dict[str, Any]
    sample_request: str

    @classmethod
    def read(cls, mar: Path) -> Archive:
        """Check an archive's hashes and read it.

        Raises:
            ServeError: If it is incomplete or was altered.
        """
        try:
            signature = verify_archive(mar)
            with zipfile.ZipFile(mar) as archive:
                config = yaml.safe_load(archive.read(CONFIG_FILE)) or {}
                sample_request = archive.read(SAMPLE_FILE).decode().strip()
        except ArchiveError as error:
            raise ServeError(str(error)) from error
        except (KeyError, yaml.YAMLError) as error:
            raise ServeError(f"{mar}: {error}; run: make archive") from error
        return cls(mar.stem, signature.model_version, config, sample_request)


def read_archives(settings: Settings) -> list[Archive]:
    """Read the archives of the enabled models.

    Raises:
        ServeError: If a model is unknown or named twice, or an archive cannot be served.
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
    return [Archive.read(settings.model_store / f"{name}.mar") for name in names]


def start(settings: Settings) -> int:
    """Serve until a signal asks to stop.

    Raises:
        ServeError: If TorchServe cannot start, or ends by itself.
    """
    with instance.claim(settings.run_folder):
        archives = read_archives(settings)
        check_ports(settings)
        server = torchserve.launch(
            settings, ",".join(f"{archive.name}={archive.name}.mar" for archive in archives)
        )
        # It imports its libraries while the models load.
        translator = sidecar.launch(settings, [archive.name for archive in archives])
        try:
            logger.info("starting TorchServe, log: %s", settings.log)
            models = wait_until_ready((server, translator), settings, archives)
            print(table(settings, models))
            print(f"\n{example(settings, archives[0])}", flush=True)
            while True:
                server.check()
                translator.check()
                time.sleep(POLL_INTERVAL_S)
        except KeyboardInterrupt:
            logger.info(
                "stopping: waiting for the requests in flight, Ctrl-C again to stop at once"
            )
            with suppress(KeyboardInterrupt):
                sidecar.drain(translator)
                torchserve.drain(Management(settings))
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            sidecar.terminate(translator)
            torchserve.terminate(server)
    logger.info("stopped")
    return 0


def wait_until_ready(
    children: Sequence[Child], settings: Settings, archives: Sequence[Archive]
) -> list[ModelVersion]:
    """Wait until every model has its workers, with a line of progress for each, and the sidecar.

    Raises:
        ServeError: If a model fails to load, is not configured as its archive says, or something
            is not READY within START_TIMEOUT_S.
    """
    started = time.monotonic()
    management = Management(settings)
    waiting = {archive.name: archive for archive in archives}
    while True:
        for child in children:
            child.check()
        for archive in waiting.values():
            check_load(settings, archive)
        models: list[ModelVersion] = []
        with suppress(requests.ConnectionError):  # TorchServe does not listen yet
            models = management.models()
        for model in models:
            if model.ready and model.name in waiting:
                check_config(model, waiting.pop(model.name).config)
                took_s = time.monotonic() - started
                logger.info("%s: %s after %.1f s", model.name, workers(model), took_s)
        if not waiting and sidecar.healthy(settings):
            return models
        if time.monotonic() - started > START_TIMEOUT_S:
            late = ", ".join(waiting) or "sidecar"
            told = "\n".join(f"{child.log} ends with:\n{tail(child.log)}" for child in children)
            raise ServeError(f"{late}: not READY after {START_TIMEOUT_S:.0f} s; {told}")
        time.sleep(POLL_INTERVAL_S)


def check_load(settings: Settings, archive: Archive) -> None:
    """See whether a worker died while it loaded its model.

    Raises:
        ServeError: If so, with the handler's own traceback.
    """
    find_failure = partial(torchserve.load_failure, settings.log, archive.name, archive.version)
    if find_failure() is None:
        return
    # The traceback may follow the news of the death, or be lost; the next attempt repeats it.
    deadline = time.monotonic() + TRACEBACK_TIMEOUT_S
    while not find_failure() and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    time.sleep(POLL_INTERVAL_S)  # it may have a second part
    reason = find_failure() or f"it left no traceback; the log ends with:\n{tail(settings.log)}"
    raise ServeError(
        f"{archive.name} {archive.version}: a worker died while it loaded the model:\n{reason}\n"
        f"run: make train archive MODEL={archive.name}; "
        "or leave the model out: make serve ENABLED_MODELS=<model>,<model>"
    )


def check_config(model: ModelVersion, config: dict[str, Any]) -> None:
    """Compare what TorchServe does with what the archive says: it skips silently what it dislikes.

    ``handler`` is our own section; ``deviceType: gpu`` means cpu where there is no GPU.

    Raises:
        ServeError: If a setting differs.
    """
    differing = [
        f"{key}: expected {expected}, TorchServe has {model.settings.get(key, 'no such setting')}"
        for key, expected in config.items()
        if key not in ("handler", "deviceType") and model.settings.get(key) != expected
    ]
    if differing:
        raise ServeError(
            f"{model.name} {model.version}: {CONFIG_FILE}: {'; '.join(differing)}; "
            f"correct archive/{model.name}/{CONFIG_FILE}, run: make archive MODEL={model.name}"
        )


def table(settings: Settings, models: Sequence[ModelVersion]) -> str:
    """The models, their workers and where they answer, as text of at most 80 columns."""
    rows = [("model", "version", "workers", settings.inference_url)]
    for model in models:
        pinned = "" if model.is_default else f"/{model.version}"
        path = f"/predictions/{model.name}{pinned}"
        rows.append((model.name, model.version, workers(model), path))
    rows.append(("sidecar", "", "", settings.sidecar_url))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def workers(model: ModelVersion) -> str:
    """How many workers a model has, in words."""
    return f"{model.ready_workers}/{model.min_workers} READY"


def example(settings: Settings, archive: Archive) -> str:
    """A shell command that asks a model for predictions."""
    lines = []
    headers = "-H 'Content-Type: application/json'"
    if settings.token_auth:
        program = f"import json; print(json.load(open('{settings.key_file}'))['inference']['key'])"
        lines.append(f'KEY=$(python3 -c "{program}")')
        headers += ' -H "Authorization: Bearer $KEY"'
    url = f"{settings.inference_url}/predictions/{archive.name}"
    lines.append(f"curl {headers} -d {shlex.quote(archive.sample_request)} {url}")
    return "\n".join(lines)


def status(settings: Settings) -> int:
    """List the models of the running instance; 0 if all of them are READY."""
    pid = instance.owner(settings.run_folder)
    if pid is None:
        logger.info("no instance is running on port %d; run: make serve", settings.inference_port)
        return 1
    try:
        models = Management(settings).models()
    except requests.RequestException as error:
        logger.info("the instance (pid %d) does not answer yet: %s", pid, error)
        return 1
    print(table(settings, models))
    for mismatch in sidecar.index_mismatches(settings):
        logger.warning("%s", mismatch)
    return 0 if models and all(model.ready for model in models) else 1


def stop(settings: Settings) -> int:
    """Stop the running instance and wait until it is gone.

    Raises:
        ServeError: If it is not gone after STOP_TIMEOUT_S.
    """
    pid = instance.owner(settings.run_folder)
    if pid is None:
        logger.info("no instance is running on port %d", settings.inference_port)
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while instance.owner(settings.run_folder) == pid:
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
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    logs.to_stderr()
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="start")
    command = COMMANDS[parser.parse_args(argv).command]
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup says
            signal.signal(number, signal.default_int_handler)
    try:
        return command(Settings.from_env(os.environ))
    except (ServeError, OSError) as error:  # the latter of a disk
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
