"""Serve for long under constant mixed load: ``python -m bench.soak --minutes 30``.

An instance of its own serves the models, directly and through the sidecar's routes. Once a minute
a worker is killed, or a version takes over by ``scripts.deploy``. The report names what failed and
why, and draws p99 and memory over time. The exit status is 1 if a request was lost that was not in
flight at a killed worker, or if memory kept growing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import aiohttp
import tyro
from rich.console import Console
from tqdm import tqdm

from bench.soak_record import Record, SentRequest
from bench.soak_report import plot, report
from bench.soak_scenario import REQUEST_TIMEOUT_S, Endpoint, Scenario, kill_worker, memory
from handlers import logs
from handlers.errors import UserError
from serving.load import calling
from serving.testing import Server, running_server
from training import artifacts

RESULTS = Path("bench/results")
CONNECTIONS = 16
DISTURBANCE_INTERVAL_S = 60.0
MEMORY_INTERVAL_S = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Serve for long under constant mixed load.

    Attributes:
        minutes: Duration.
        models: Names separated by commas; all by default. Models with two versions switch between
            the newest two.
        requests_per_s: Rate of requests, all endpoints together.
        artifacts_dir: Folder that training wrote to.
        results: Folder for soak.png.
    """

    minutes: float = 30.0
    models: str = ""
    requests_per_s: float = 100.0
    artifacts_dir: Path = artifacts.ARTIFACTS
    results: Path = RESULTS


def soak(config: Config, record: Record) -> None:
    """Run the soak until the time is over or the user interrupts it.

    Args:
        config: What to serve, and for how long.
        record: Receives requests, disturbances and memory as they come.

    Raises:
        UserError: If the soak cannot start, or the instance ends.
    """
    models = config.models.split(",") if config.models else []
    with tempfile.TemporaryDirectory(prefix="recmar-soak-") as scratch:
        scenario = Scenario(models, config.artifacts_dir, Path(scratch))
        with running_server(scenario.store) as server:
            call = _caller(scenario.endpoints(server), config.requests_per_s, record)
            record.started = time.monotonic()
            with calling(call, CONNECTIONS, REQUEST_TIMEOUT_S):
                _disturb_and_observe(scenario, server, config.minutes * 60, record)


def _caller(
    endpoints: Sequence[Endpoint], requests_per_s: float, record: Record
) -> Callable[[aiohttp.ClientSession], Awaitable[None]]:
    """Return the coroutine that each connection repeats: it sends one request and pauses."""
    # A connection sends one request per period, even if answers are late: a slow server gets
    # no less to do.
    period_s = CONNECTIONS / requests_per_s
    turns = count()
    pairs = [(endpoint, body) for endpoint in endpoints for body in endpoint.bodies]
    shuffled = random.Random(0).sample(pairs, len(pairs))

    async def call(session: aiohttp.ClientSession) -> None:
        endpoint, body = shuffled[next(turns) % len(shuffled)]
        at_s, error = record.now(), None
        try:
            async with session.post(
                endpoint.url, data=body, headers={"Content-Type": "application/json"}
            ) as response:
                text = await response.text()
                if response.status != 200:
                    error = f"{endpoint.path}: {response.status} {text[:200]}"
        except (aiohttp.ClientError, TimeoutError) as problem:
            error = f"{endpoint.path}: {problem!r}"
        took_s = record.now() - at_s
        record.requests.append(SentRequest(at_s, took_s * 1e3, endpoint.model, error))
        await asyncio.sleep(max(0.0, period_s - took_s))

    return call


def _disturb_and_observe(scenario: Scenario, server: Server, end_s: float, record: Record) -> None:
    """Kill workers and switch versions in turns, and record the memory, until the end.

    Raises:
        UserError: If the instance ends.
    """
    interval_s = min(DISTURBANCE_INTERVAL_S, end_s / 4)
    switched, killed = cycle(scenario.switching), cycle(scenario.versions)
    next_disturbance_s = interval_s
    kinds = cycle(["kill", "switch"])
    with tqdm(total=round(end_s), unit="s", disable=None, leave=False) as bar:
        while (now_s := record.now()) < end_s:
            if server.process.poll() is not None:
                raise UserError("the instance ended")
            record.memory.append((now_s, memory(server)))
            if now_s >= next_disturbance_s:
                if next(kinds) == "kill":
                    done = kill_worker(server, next(killed), record)
                else:
                    done = scenario.switch(server, next(switched), record)
                record.disturbances.append(done)
                next_disturbance_s += interval_s
            time.sleep(min(MEMORY_INTERVAL_S, max(0.0, end_s - record.now())))
            bar.update(round(min(end_s, record.now())) - bar.n)
    record.memory.append((record.now(), memory(server)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, prog="python -m bench.soak", args=argv)
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # at import it warns of missing accelerators
    if not 0 < config.minutes < math.inf or not 0 < config.requests_per_s < math.inf:
        logger.error("--minutes, --requests-per-s: expected numbers above 0")
        return 2
    record, status = Record(), 0
    try:
        soak(config, record)
    except (UserError, OSError) as error:
        logger.error("%s", error)
        status = 1
    except KeyboardInterrupt:
        logger.warning("interrupted after %.0f s", record.now())
        status = 130
    if not record.requests or not record.memory:
        return status
    config.results.mkdir(parents=True, exist_ok=True)
    table, problems = report(record)
    Console(width=80).print(table)
    picture = config.results / "soak.png"
    plot(record, picture)
    print(picture)
    for problem in problems:
        logger.error("%s", problem)
    return status or int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
