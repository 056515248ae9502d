"""Serve for long under constant mixed load: ``python -m bench.soak --minutes 30``.

An instance of its own serves the models, directly and through the sidecar's routes. Now and then a
version takes over by ``scripts.deploy``, or a worker is killed. Says what failed and why, draws p99
and memory over time, and ends with exit status 1 if a request was lost that need not have been, or
memory went on growing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib.pyplot as plt
import numpy as np
import orjson
import psutil
import requests
import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tqdm import tqdm

from archive import catalog, package
from archive.registry.store import Registry
from handlers import logs
from handlers.errors import ArchiveError, UserError
from serving.archive_file import ArchiveFile
from serving.load import calling
from serving.testing import ROOT, Server, running_server
from sidecar.http.app import ROUTES
from training import artifacts

RESULTS = Path("bench/results")
CONNECTIONS = 16
TIMEOUT_S = 10.0
EVENT_INTERVAL_S = 60.0
MEMORY_INTERVAL_S = 2.0
RECOVERY_TIMEOUT_S = 60.0
WINDOWS = 60  # on the picture
# A batch in the hands of a killed worker is lost, and only that.
LOST_WITHIN_S = 5.0
# Until then processes grow into their work: Java's heap, the allocators' pools.
WARM_UP_SHARE = 1 / 3
MAX_GROWTH = 0.05
LEAST_MINUTES = 5.0  # to tell growth from noise

# Under which a route takes what the model also takes bare.
WRAPPERS = {
    "/query_embedding": "query_features",
    "/user_embedding": "user_features",
    "/item_embedding": "item_features",
}

logger = logging.getLogger(__name__)


class SoakError(UserError):
    """The soak cannot begin; the message says what to do."""


@dataclass(frozen=True)
class Config:
    """Serve for long under constant mixed load.

    Attributes:
        minutes: Duration.
        models: Names separated by commas; all by default. Those with two versions switch between
            the newest two.
        requests_per_s: Of the load as a whole.
        artifacts_dir: Folder that training wrote to.
        results: Folder for soak.png.
    """

    minutes: float = 30.0
    models: str = ""
    requests_per_s: float = 100.0
    artifacts_dir: Path = artifacts.ARTIFACTS
    results: Path = RESULTS


@dataclass(frozen=True)
class Target:
    """One kind of request.

    Attributes:
        name: The path.
        model: What answers.
        url: Where to.
        bodies: Sent in turn.
    """

    name: str
    model: str
    url: str
    bodies: Sequence[bytes]


@dataclass(frozen=True)
class Call:
    """A request that was answered, or was not.

    Attributes:
        at_s: When it was sent, since the start.
        latency_ms: Until the answer.
        model: What was asked.
        error: None if it was answered with 200.
    """

    at_s: float
    latency_ms: float
    model: str
    error: str | None


@dataclass(frozen=True)
class Event:
    """What was done to the instance.

    Attributes:
        at_s: When it began, since the start.
        kind: ``switch`` or ``kill``.
        model: To which.
        took_s: Until the version served, or the worker was back.
        error: None if it went well.
    """

    at_s: float
    kind: str
    model: str
    took_s: float
    error: str | None


@dataclass
class Record:
    """All that was seen.

    Attributes:
        calls: In the order of the answers.
        events: In order.
        memory: Seconds since the start, and bytes by part: the PSS of its processes. None while
            something is done to the instance.
    """

    calls: list[Call] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def lost(self) -> tuple[list[Call], list[Call]]:
        """What was not answered: in the hands of killed workers, and for no such reason."""
        killed: list[Call] = []
        others: list[Call] = []
        kills = [event for event in self.events if event.kind == "kill"]
        for call in self.calls:
            if call.error is None:
                continue
            end_s = call.at_s + call.latency_ms / 1e3
            excused = any(
                call.model == kill.model
                and call.at_s <= kill.at_s + LOST_WITHIN_S
                and end_s >= kill.at_s
                for kill in kills
            )
            (killed if excused else others).append(call)
        return killed, others

    def growth(self) -> float:
        """By which share memory grew after the warm-up: of its second half over its first."""
        total = np.array([(at_s, sum(parts.values())) for at_s, parts in self.memory])
        after = total[total[:, 0] >= total[-1, 0] * WARM_UP_SHARE][:, 1]
        first, second = np.array_split(after, 2)
        # Medians: while a version takes over, two are loaded.
        return float(np.median(second) / np.median(first) - 1)


class World:
    """The instance, what it may switch to, and what it is asked.

    Args:
        config: Models and their artifacts.
        scratch: Folder for the store and the registry.

    Attributes:
        store: The archives that are served.
        registry: Of all archives.
        versions: Newest first, by model.

    Raises:
        SoakError: If no model has two versions.
        ArtifactError: If a model has none.
        ArchiveError: If one cannot be served.
        UnknownModelError: If there is no such model.
    """

    def __init__(self, config: Config, scratch: Path) -> None:
        self.store = scratch / "store"
        self.registry = Registry(scratch / "registry")
        self.versions: dict[str, list[str]] = {}
        names = config.models.split(",") if config.models else catalog.model_names()
        for name in track(names, "packaging", transient=True, disable=not sys.stderr.isatty()):
            model = catalog.get(name)
            newest = artifacts.find(model.artifacts, None, config.artifacts_dir).name
            self._add(model, newest, self.store, config)
            for older in artifacts.versions(model.artifacts, config.artifacts_dir)[-2:-1]:
                try:
                    self._add(model, older, scratch / "older", config)
                except (ArchiveError, artifacts.ArtifactError) as error:
                    logger.warning("%s: does not switch: %s", name, error)
        if not self.switching:
            [name, *_] = self.versions
            raise SoakError(
                f"{config.artifacts_dir}: expected a model with two versions to switch between; "
                f"run: make train MODEL={name}"
            )

    def _add(self, model: catalog.Model, version: str, store: Path, config: Config) -> None:
        places = package.Config(store=store, artifacts_dir=config.artifacts_dir)
        self.registry.register(model.name, version, package.package(model, version, places))
        self.versions.setdefault(model.name, []).append(version)

    @property
    def switching(self) -> list[str]:
        """Models with a version to switch to."""
        return [model for model, versions in self.versions.items() if len(versions) > 1]

    def targets(self, server: Server) -> list[Target]:
        """Every model, and every route that has one."""
        found = []
        golden = {m: ArchiveFile.read(self.store / f"{m}.mar").golden for m in self.versions}
        for model, each in golden.items():
            path = f"/predictions/{model}"
            found.append(Target(path, model, server.inference_url + path, each.requests[:9]))
        for route, model in ROUTES.items():
            if model in golden:
                bodies = [orjson.dumps(_translated(route, row)) for row in golden[model].rows[:9]]
                found.append(Target(route, model, server.sidecar_url + route, bodies))
        return found


def _translated(route: str, row: Any) -> Any:
    """A row of a model as its route takes it."""
    if route == "/predict":
        return {"features_list": [row]}
    wrapper = WRAPPERS.get(route)
    return row if wrapper is None or wrapper in row else {wrapper: row}


def soak(config: Config, record: Record) -> None:
    """Do it, and record what is seen until the time is over or somebody interrupts.

    Raises:
        As :class:`World`.
    """
    with tempfile.TemporaryDirectory(prefix="recmar-soak-") as scratch:
        world = World(config, Path(scratch))
        with running_server(world.store) as server:
            callers = _callers(world.targets(server), config, record)
            record.started = time.monotonic()
            with calling(callers, CONNECTIONS, TIMEOUT_S):
                _disturb(world, server, config, record)


def _callers(
    targets: Sequence[Target], config: Config, record: Record
) -> Callable[[aiohttp.ClientSession], Any]:
    """What each connection does, again and again."""
    # Each connection sends once a period, late or not: a slow server gets no less to do.
    period_s = CONNECTIONS / config.requests_per_s
    turns = count()
    shuffled = random.Random(0).sample(
        [(target, body) for target in targets for body in target.bodies],
        sum(len(target.bodies) for target in targets),
    )

    async def call(session: aiohttp.ClientSession) -> None:
        target, body = shuffled[next(turns) % len(shuffled)]
        at_s, error = record.now(), None
        try:
            async with session.post(
                target.url, data=body, headers={"Content-Type": "application/json"}
            ) as response:
                text = await response.text()
                if response.status != 200:
                    error = f"{target.name}: {response.status} {text[:200]}"
        except (aiohttp.ClientError, TimeoutError) as problem:
            error = f"{target.name}: {problem!r}"
        took_s = record.now() - at_s
        record.calls.append(Call(at_s, took_s * 1e3, target.model, error))
        await asyncio.sleep(max(0.0, period_s - took_s))

    return call


def _disturb(world: World, server: Server, config: Config, record: Record) -> None:
    """Kill and switch in turns, and look at the memory, until the time is over."""
    end_s = config.minutes * 60
    interval_s = min(EVENT_INTERVAL_S, end_s / 4)
    switched, killed = cycle(world.switching), cycle(world.versions)
    next_event_s = interval_s
    kinds = cycle(["kill", "switch"])
    with tqdm(total=round(end_s), unit="s", disable=None, leave=False) as bar:
        while (now_s := record.now()) < end_s:
            if server.process.poll() is not None:
                raise SoakError("the instance ended")
            record.memory.append((now_s, memory(server)))
            if now_s >= next_event_s:
                kind = next(kinds)
                if kind == "switch":
                    record.events.append(_switch(world, server, next(switched), record))
                else:
                    record.events.append(_kill(server, next(killed), record))
                next_event_s += interval_s
            time.sleep(min(MEMORY_INTERVAL_S, max(0.0, end_s - record.now())))
            bar.update(round(min(end_s, record.now())) - bar.n)
    record.memory.append((record.now(), memory(server)))


def _switch(world: World, server: Server, model: str, record: Record) -> Event:
    """Let the version that does not serve take over."""
    at_s = record.now()
    versions = world.versions[model]
    versions.reverse()
    run = subprocess.run(
        [
            *(sys.executable, "-m", "scripts.deploy", "--model", model, "--version", versions[0]),
            *("--registry", world.registry.folder, "--model-store", world.store),
            *("--service-url", server.management_url, "--inference-url", server.inference_url),
            *("--watch-s", "2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    error = None if run.returncode == 0 else run.stderr.strip().rpartition("\n")[2]
    return Event(at_s, "switch", model, record.now() - at_s, error)


def _kill(server: Server, model: str, record: Record) -> Event:
    """Kill one of a model's workers, and wait until all are READY again."""
    at_s = record.now()

    def workers() -> list[dict[str, Any]]:
        told = requests.get(f"{server.management_url}/models/{model}", timeout=TIMEOUT_S).json()
        return list(told[0]["workers"])

    # A worker that is not READY may have the pid -1, which to kill() is everybody.
    ready = [worker["pid"] for worker in workers() if worker["status"] == "READY"]
    if not ready:
        return Event(at_s, "kill", model, 0.0, "no worker was READY")
    victim = ready[0]
    os.kill(victim, signal.SIGKILL)
    while record.now() - at_s < RECOVERY_TIMEOUT_S:
        time.sleep(0.2)
        now = workers()
        if all(worker["status"] == "READY" and worker["pid"] != victim for worker in now):
            return Event(at_s, "kill", model, record.now() - at_s, None)
    error = f"no worker in its place after {RECOVERY_TIMEOUT_S:.0f} s"
    return Event(at_s, "kill", model, record.now() - at_s, error)


def memory(server: Server) -> dict[str, int]:
    """Bytes of each part of an instance: the sum of its processes' PSS."""
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


def windows(record: Record) -> Iterator[tuple[float, list[Call]]]:
    """The calls in stretches of equal length, each with its middle in seconds."""
    end_s = max(call.at_s for call in record.calls) + 1e-9
    size_s = end_s / WINDOWS
    calls: list[list[Call]] = [[] for _ in range(WINDOWS)]
    for call in record.calls:
        calls[int(call.at_s / size_s)].append(call)
    yield from (((i + 0.5) * size_s, each) for i, each in enumerate(calls))


def percentile(calls: Sequence[Call], percent: float) -> float:
    """The latency in ms that this share of the answered calls stays below."""
    latencies = [call.latency_ms for call in calls if call.error is None]
    return float(np.percentile(latencies, percent)) if latencies else math.nan


def plot(record: Record, path: Path) -> None:
    """Draw latency, failures and memory over time, with what was done when."""
    figure, (latency, lost, used) = plt.subplots(
        3, 1, figsize=(10, 9), sharex=True, layout="constrained"
    )
    middles, calls = zip(*windows(record), strict=True)
    minutes = [middle / 60 for middle in middles]
    for percent in (50, 99):
        latency.plot(minutes, [percentile(c, percent) for c in calls], label=f"p{percent}")
    latency.set(title="latency, ms", yscale="log")
    killed, others = (set(map(id, calls)) for calls in record.lost())
    width = minutes[0] * 2
    below = np.zeros(len(minutes))
    for label, which in (("in the hands of a killed worker", killed), ("others", others)):
        heights = np.array([sum(id(call) in which for call in c) for c in calls], float)
        lost.bar(minutes, heights, width, bottom=below, label=label)
        below += heights
    lost.set(title="requests that were not answered", ylim=(0, max(1, below.max() * 1.1)))
    times = [at_s / 60 for at_s, _ in record.memory]
    parts = ("Java", "workers", "sidecar")
    used.stackplot(
        times, *([m.get(p, 0) / 2**20 for _, m in record.memory] for p in parts), labels=parts
    )
    used.set(title="memory (PSS), MB", xlabel="minutes")
    for axis in (latency, lost, used):
        for kind, color in (("switch", "tab:green"), ("kill", "tab:red")):
            at = [event.at_s / 60 for event in record.events if event.kind == kind]
            for i, minute in enumerate(at):
                axis.axvline(minute, color=color, alpha=0.4, label=None if i else kind)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        axis.grid(alpha=0.3)
    figure.savefig(path)
    plt.close(figure)


def report(record: Record) -> tuple[Table, list[str]]:
    """What came of it, and what is wrong with that."""
    killed, others = record.lost()
    table = Table("", "", show_header=False, box=box.SIMPLE_HEAD)
    table.add_row("minutes", f"{record.memory[-1][0] / 60:.1f}")
    table.add_row("requests", f"{len(record.calls):,}")
    for kind, name in (("switch", "versions switched"), ("kill", "workers killed")):
        done = [event for event in record.events if event.kind == kind]
        longest = max((event.took_s for event in done), default=math.nan)
        table.add_row(name, f"{len(done)}, at most {longest:.1f} s each")
    table.add_row("lost in the hands of killed workers", str(len(killed)))
    table.add_row("lost otherwise", str(len(others)))
    half = len(record.calls) // 2
    for name, calls in (
        ("p50, p99 in ms, first half", record.calls[:half]),
        ("p50, p99 in ms, second half", record.calls[half:]),
    ):
        table.add_row(name, f"{percentile(calls, 50):.1f}, {percentile(calls, 99):.1f}")
    megabytes = sum(record.memory[-1][1].values()) / 2**20
    judged = record.memory[-1][0] / 60 >= LEAST_MINUTES
    grown = record.growth() if judged else math.nan
    told = f"{grown:+.1%}" if judged else f"not judged below {LEAST_MINUTES:g} minutes"
    table.add_row("memory at the end", f"{megabytes:,.0f} MB")
    table.add_row("memory's growth after the warm-up", told)
    wrong = [f"{event.kind} {event.model}: {event.error}" for event in record.events if event.error]
    wrong += [error for error, _ in Counter(str(call.error) for call in others).most_common(5)]
    if grown > MAX_GROWTH:
        wrong.append(f"memory: expected growth of at most {MAX_GROWTH:.0%}, got {grown:.1%}")
    return table, wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, prog="python -m bench.soak", args=argv)
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # it misses accelerators at import
    if not 0 < config.minutes < math.inf or not 0 < config.requests_per_s < math.inf:
        logger.error("--minutes, --requests-per-s: expected numbers above 0")
        return 2
    record, status = Record(), 0
    try:
        soak(config, record)
    except (
        artifacts.ArtifactError,
        ArchiveError,
        catalog.UnknownModelError,
        RuntimeError,  # SoakError, and what the instance said when it did not start
        requests.RequestException,  # it ended while a worker was killed
    ) as error:
        logger.error("%s", error)
        status = 1
    except KeyboardInterrupt:
        logger.warning("interrupted after %.0f s", record.now())
        status = 130
    if not record.calls or not record.memory:
        return status
    config.results.mkdir(parents=True, exist_ok=True)
    table, wrong = report(record)
    Console(width=80).print(table)
    picture = config.results / "soak.png"
    plot(record, picture)
    print(picture)
    for problem in wrong:
        logger.error("%s", problem)
    return status or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
