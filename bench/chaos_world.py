"""An instance under load, for `bench.chaos` to disturb."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import aiohttp
import psutil
import requests

from archive.registry.store import Registry
from serving.client import TorchServe
from serving.load import calling
from serving.model_version import ModelVersion
from serving.testing import CONFIG, ROOT, Server, make_archive

CONNECTIONS = 16
CAN_MOUNT = os.geteuid() == 0  # small file systems, to fill them
TIMEOUT_S = 60.0
MODEL, TRAINED = "chaos", "xgb"
N_ROWS = 4
# A version adds its number to each row's x. What a version does wrong is filled in.
HANDLER = """
import json
import logging
import os
import time

class Handler:
    calls = 0

    def initialize(self, context):
        logging.getLogger().setLevel(logging.WARNING)
        {at_load}

    def handle(self, data, context):
        return [self.answer(json.loads(row["body"])["data"]) for row in data]

    def answer(self, rows):
        Handler.calls += 1
        predictions = [{number} + row.get("x", 0) for row in rows]
        {at_call}
        return json.dumps({{"predictions": predictions}}).encode()
"""
NUMBERS, OTHER_NUMBER = {"v1": 100, "v2": 200}, 300


class FaultError(Exception):
    """A fault was not survived; the message says what happened instead."""


def archive(
    folder: Path,
    version: str,
    *,
    at_load: str = "pass",
    at_call: str = "pass",
    golden: float = 0,
    config: str = CONFIG,
) -> Path:
    """Make an archive of the stand-in.

    Args:
        folder: Folder for the archive.
        version: Its version; one of `NUMBERS` is right, any other does something wrong.
        at_load: A statement to run when it is loaded.
        at_call: A statement to run for each request.
        golden: How far the golden predictions are off.
        config: Its ``model-config.yaml``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = NUMBERS.get(version, OTHER_NUMBER)
    rows = [{"x": x} for x in range(N_ROWS)]
    expected = {"rows": rows, "predictions": [number + row["x"] + golden for row in rows]}
    source = HANDLER.format(number=number, at_load=at_load, at_call=at_call)
    return make_archive(
        folder, MODEL, source, version=version, golden=json.dumps(expected), config=config
    )


def table(path: Path, n_rows: int = 2000) -> Path:
    """Write a table to train on, and return its path."""
    random = Random(0)
    lines = ["price,ctr,label"]
    for _ in range(n_rows):
        price, ctr = random.uniform(1, 100), random.random()
        lines.append(f"{price:.2f},{ctr:.4f},{int(random.random() < ctr)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run(module: str, *flags: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command of the project to its end.

    Raises:
        FaultError: If it fails.
    """
    done = complete(module, *flags, env=env)
    if done.returncode != 0:
        raise FaultError(f"{module} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def complete(
    module: str, *flags: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the project to its end, whatever its exit status."""
    command = [sys.executable, "-m", module, *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Mount a small file system over a folder while the block runs, and fill it; only root can."""
    content = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    size = sum(map(len, content.values())) + (64 << 10)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        for name, data in content.items():
            (folder / name).write_bytes(data)
        with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@dataclass
class Load:
    """What callers saw.

    Attributes:
        answered: Number of requests with the right answer.
        lost: Errors of the others.
    """

    answered: int = 0
    lost: list[str] = field(default_factory=list)

    def problem(self, may_lose: int) -> str:
        """Return what is wrong with it; empty if callers were answered and lost few requests."""
        if len(self.lost) > may_lose:
            return f"lost {len(self.lost)} requests: {self.lost[0]}"
        return "" if self.answered else "no caller was answered"


@dataclass
class World:
    """An instance that serves v1 of the stand-in and a trained model.

    Attributes:
        scratch: Folder for whatever a fault needs.
        store: Model store of the instance.
        registry: Registry with the versions of the stand-in.
        server: The instance.
    """

    scratch: Path
    store: Path
    registry: Registry
    server: Server

    @contextmanager
    def load(self) -> Iterator[Load]:
        """Call the stand-in while the block runs."""
        seen, random = Load(), Random(0)
        url = f"{self.server.inference_url}/predictions/{MODEL}"

        async def call(session: aiohttp.ClientSession) -> None:
            x = random.randrange(1000)
            try:
                async with session.post(url, json={"data": [{"x": x}]}) as response:
                    text = await response.text()
                    numbers = (*NUMBERS.values(), OTHER_NUMBER)
                    right = [{"predictions": [number + x]} for number in numbers]
                    if response.status == 200 and json.loads(text) in right:
                        seen.answered += 1
                    else:
                        seen.lost.append(f"{response.status} {text[:200]}")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                seen.lost.append(repr(error))
            await asyncio.sleep(0.01)

        with calling(call, CONNECTIONS, TIMEOUT_S):
            yield seen

    def deploy_flags(self, version: str) -> list[str]:
        """Return the flags that deploy a version of the stand-in."""
        return [
            *("--model", MODEL, "--version", version, "--watch-s", "0.5", "--ungated", "chaos"),
            *("--registry", str(self.registry.folder), "--model-store", str(self.store)),
            *("--service-url", self.server.management_url),
            *("--inference-url", self.server.inference_url),
        ]

    def refuse(self, version: str, reason: str) -> None:
        """Deploy a version that must not get to serve.

        Args:
            version: The version.
            reason: What the last line of the command must say.

        Raises:
            FaultError: If it serves, something is left, or the reason is another.
        """
        flags = [*self.deploy_flags(version), "--max-p99-ms", "1000"]
        done = complete("scripts.deploy", *flags, env=self.server.env)
        error = done.stderr.strip().rpartition("error: ")[2]
        if done.returncode != 1 or reason not in error:
            raise FaultError(f"scripts.deploy ended with {done.returncode}: {error[-300:]}")
        self.check_serves("v1")
        names = [path.name for path in self.store.iterdir()]
        if left := [n for n in names if n.startswith(f"{MODEL}-") or n.endswith(".part")]:
            raise FaultError(f"left behind: {', '.join(left)}")

    def versions(self) -> list[ModelVersion]:
        """Return the loaded versions of the stand-in, the default one first."""

        async def ask() -> list[ModelVersion]:
            urls = self.server.inference_url, self.server.management_url
            async with TorchServe(*urls, None, TIMEOUT_S) as torchserve:
                return await torchserve.versions(MODEL)

        return asyncio.run(ask())

    def check_serves(self, version: str) -> None:
        """Check that a version, and no other, is loaded.

        Raises:
            FaultError: If another one is.
        """
        found = [each.version for each in self.versions()]
        if found != [version]:
            raise FaultError(f"expected {MODEL} {version} to serve, found {', '.join(found)}")

    def healthy(self) -> bool:
        """Return whether every worker is ready, as the sidecar sees it."""
        try:
            return requests.get(f"{self.server.sidecar_url}/health", timeout=TIMEOUT_S).ok
        except requests.ConnectionError:
            return False

    def process(self, part: str) -> psutil.Process:
        """Return the process of a part of the instance: ``java`` or ``sidecar``."""
        for process in psutil.Process(self.server.process.pid).children():
            if part in (process.name(), process.cmdline()[-1]):
                return process
        raise FaultError(f"there is no {part}")
