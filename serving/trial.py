"""Measure archives one after the other on a TorchServe that serves nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from handlers.errors import UserError
from serving import run_folder as instance
from serving import server as torchserve
from serving.client import TorchServe, TorchServeError
from serving.load import Load, load
from serving.ports import free_ports
from serving.replay import replay
from serving.rollout import RolloutError, loaded, retire
from serving.settings import Settings

WARM_UP_S = 2
START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Traffic:
    """The load of each measurement.

    Attributes:
        source: Origin of the requests, for messages.
        bodies: Request bodies, sent in turn.
        connections: Concurrent callers; each sends its next request when the last is answered.
        seconds: Duration of a measurement.
    """

    source: str
    bodies: Sequence[bytes]
    connections: int
    seconds: int


class Trial:
    """A running TorchServe, empty between measurements.

    Args:
        client: Client of the TorchServe.
        settings: Its settings.
        traffic: Load of each measurement.
        body: File of the request bodies, one per line.
    """

    def __init__(
        self, client: TorchServe, settings: Settings, traffic: Traffic, body: Path
    ) -> None:
        self._client = client
        self._settings = settings
        self._traffic = traffic
        self._body = body
        self._checked = False

    @property
    def store(self) -> Path:
        """Folder from which the archives are loaded."""
        return self._settings.model_store

    async def measure(self, mar: Path, version: str) -> tuple[Load, int]:
        """Load an archive of the store, put it under load and remove it again.

        Args:
            mar: The archive, ``<model>.mar``.
            version: Its version.

        Returns:
            What the callers saw, and the resident memory of the largest worker in bytes.

        Raises:
            RolloutError: If the archive cannot be loaded.
            TorchServeError: If TorchServe refuses a command.
            UserError: If the model refuses a request, a worker dies under load, or the load
                generator fails.
        """
        model = mar.stem
        url = f"{self._client.inference_url}/predictions/{model}"
        traffic = self._traffic
        try:
            async with loaded(self._client, model, version, mar):
                if not self._checked:
                    await self._check_requests(model, version)
                    self._checked = True
                for seconds in (WARM_UP_S, traffic.seconds):
                    seen = await asyncio.to_thread(
                        load, url, self._body, traffic.connections, seconds
                    )
                worker_bytes = await self._largest_worker_bytes(model, version)
        except RolloutError as error:
            failure = torchserve.load_failure(self._settings.log, model, version)
            raise RolloutError(failure or str(error)) from error
        await retire(self._client, model, version)
        return seen, worker_bytes

    async def _check_requests(self, model: str, version: str) -> None:
        """Send each request once: refusals are fast and would pass for speed.

        Raises:
            UserError: If one is not answered with predictions.
        """
        [replayed] = await replay(self._client, model, [version], self._traffic.bodies)
        if replayed.errors:
            number = replayed.predictions.index(None) + 1
            raise UserError(f"{self._traffic.source}:{number}: {replayed.errors[0]}")

    async def _largest_worker_bytes(self, model: str, version: str) -> int:
        """Return the resident memory of a version's largest worker.

        Raises:
            UserError: If a worker died.
        """
        served = await self._client.version(model, version)
        try:
            return served.largest_worker_bytes() if served else 0
        except (psutil.NoSuchProcess, ValueError) as error:
            raise UserError(
                f"{model} {version}: a worker died under load; try fewer rows or connections"
            ) from error


@asynccontextmanager
async def running_trial(scratch: Path, traffic: Traffic) -> AsyncIterator[Trial]:
    """Run a TorchServe without models, on free ports, while the block runs.

    Args:
        scratch: Folder for its model store, its log and the requests.
        traffic: Load of each measurement.

    Raises:
        ServeError: If it does not start.
    """
    names = ("INFERENCE_PORT", "MANAGEMENT_PORT", "METRICS_PORT", "SIDECAR_PORT")
    ports = map(str, free_ports(len(names)))
    places = {"MODEL_STORE": f"{scratch}/store", "LOG_LOCATION": f"{scratch}/logs"}
    settings = Settings.from_env({**dict(zip(names, ports, strict=True)), **places})
    settings.model_store.mkdir()
    body = scratch / "requests.jsonl"
    body.write_bytes(b"\n".join(traffic.bodies))
    with instance.claim(settings.run_folder):
        server = torchserve.launch(settings, load_models="")
        try:
            async with TorchServe(
                settings.inference_url, settings.management_url, None, REQUEST_TIMEOUT_S
            ) as client:
                for _ in range(int(START_TIMEOUT_S / POLL_INTERVAL_S)):
                    server.check()
                    try:
                        await client.versions("none")
                        break
                    except TorchServeError:  # it does not listen yet
                        await asyncio.sleep(POLL_INTERVAL_S)
                yield Trial(client, settings, traffic, body)
        finally:
            torchserve.terminate(server)
