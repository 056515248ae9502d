"""Real TorchServe for tests and benchmarks: each server on free ports of the loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from handlers.signature import Signature, sha256
from serving.ports import free_ports
from serving.settings import ROOT as ROOT
from serving.settings import ServeError

STOP_TIMEOUT_S = 60.0

CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 8\nmaxBatchDelay: 1\n"


@dataclass(frozen=True)
class Server:
    """A running server, started by ``python -m scripts.serve``.

    Attributes:
        process: Process of scripts.serve.
        env: Environment by which the other commands find this server.
        output: Table that it printed when everything was READY.
    """

    process: subprocess.Popen[str]
    env: dict[str, str]
    output: str

    @property
    def inference_url(self) -> str:
        """Base URL of /ping and /predictions."""
        return f"http://127.0.0.1:{self.env['INFERENCE_PORT']}"

    @property
    def management_url(self) -> str:
        """Base URL of /models."""
        return f"http://127.0.0.1:{self.env['MANAGEMENT_PORT']}"

    @property
    def metrics_url(self) -> str:
        """Base URL of /metrics."""
        return f"http://127.0.0.1:{self.env['METRICS_PORT']}"

    @property
    def sidecar_url(self) -> str:
        """Base URL of the sidecar's routes."""
        return f"http://127.0.0.1:{self.env['SIDECAR_PORT']}"

    @property
    def temp_folder(self) -> Path:
        """Its TMPDIR."""
        return Path(self.env["TMPDIR"])

    @property
    def run_folder(self) -> Path:
        """Folder of its sockets, unpacked archives and tokens while it runs."""
        return self.temp_folder / f"recmar-{self.env['INFERENCE_PORT']}"


@contextmanager
def running_server(model_store: Path, root: Path = ROOT, /, **env: str) -> Iterator[Server]:
    """Serve the archives of a folder while the block runs.

    Args:
        model_store: Folder of the archives; all of them are served.
        root: Checkout whose code serves them.
        env: Further settings of scripts.serve, such as ``TOKEN_AUTH="1"``.

    Raises:
        ServeError: If the server does not start, with its messages.
    """
    with instance_env(model_store, **env) as environment:
        process = start(environment, root=root)
        try:
            output = _table(process.stdout)
            if not output:
                raise ServeError(f"scripts.serve: {process.communicate()[1]}")
            yield Server(process, environment, output)
        finally:
            stop(process)


@contextmanager
def instance_env(model_store: Path, **env: str) -> Iterator[dict[str, str]]:
    """Create the environment of a server with its own ports and temporary folder."""
    # Not pytest's tmp_path: the path of a socket must stay below 108 bytes.
    with tempfile.TemporaryDirectory(prefix="recmar-", ignore_cleanup_errors=True) as folder:
        inference, management, metrics, sidecar = free_ports(4)
        yield {
            **os.environ,
            "ENABLED_MODELS": ",".join(sorted(mar.stem for mar in model_store.glob("*.mar"))),
            "MODEL_STORE": str(model_store),
            "INFERENCE_PORT": str(inference),
            "MANAGEMENT_PORT": str(management),
            "METRICS_PORT": str(metrics),
            "SIDECAR_PORT": str(sidecar),
            "TMPDIR": folder,
            "LOG_LOCATION": f"{folder}/logs",
            **env,
        }


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a server without draining it, if it still runs.

    Raises:
        TimeoutExpired: If it does not end.
    """
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def start(env: dict[str, str], *command: str, root: Path = ROOT) -> subprocess.Popen[str]:
    """Start ``python -m scripts.serve`` in its own process group, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.serve", *command],
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def _table(stdout: IO[str] | None) -> str:
    # It is written in one piece once all models are READY, and nothing before it.
    lines = []
    while line := stdout.readline().strip() if stdout else "":
        lines.append(line)
    return "\n".join(lines)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: If it does not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(0.05)


def make_archive(
    model_store: Path,
    name: str,
    handler: str,
    *,
    version: str = "1.0",
    config: str = CONFIG,
    golden: str = "",
    features: Sequence[dict[str, Any]] = (),
) -> Path:
    """Package a handler's source as an archive that passes the same checks as a real one."""
    files = {
        f"{name}_handler.py": handler,
        "model-config.yaml": config,
        "sample_request.json": '{"data":[{"item_ctr":0.1}]}',
        **({"golden.json": golden} if golden else {}),
    }
    signature = Signature(
        model_name=name,
        model_version=version,
        handler=f"{name}_handler.py",
        features=[*features],
        output={"type": "number"},
        libraries={},
        files={file: sha256(text.encode()) for file, text in files.items()},
    )
    manifest = {
        "runtime": "python",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "handler": f"{name}_handler.py",
            "configFile": "model-config.yaml",
        },
    }
    mar = model_store / f"{name}.mar"
    with zipfile.ZipFile(mar, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr("signature.json", json.dumps(signature.to_json()))
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
    return mar


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number of a JSON value with its path; a text becomes a part of its path.

    To compare values: ``dict(numbers(a)) == close(b)``.
    """
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    elif isinstance(value, str):
        yield f"{path}={value}", 0  # pytest.approx takes only numbers
        return
    else:
        yield path, value
        return
    for key, item in items:
        yield from numbers(item, f"{path}[{key}]")
