"""Measure a model's settings on this machine and keep the best: ``python -m scripts.tune``.

A TorchServe of its own, on free ports, loads the archive with one setting after the other. From
the present setting the sweep changes one value at a time, goes on in a direction while requests/s
grow, and ends when no step helps.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import cycle, islice, product
from pathlib import Path

import orjson
import psutil
import tyro
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from archive import catalog
from archive.package import MODEL_STORE, with_config
from handlers import logs
from handlers.errors import ArchiveError, UserError
from serving import run_folder as instance
from serving import server as torchserve
from serving.archive_file import ArchiveFile
from serving.budget import JAVA_BYTES, Budget
from serving.client import TorchServe, TorchServeError
from serving.load import Load, LoadError, generator, load
from serving.ports import free_ports
from serving.replay import RequestsError, read_requests, replay
from serving.rollout import RolloutError, loaded, retire
from serving.settings import ServeError, Settings

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
DELAYS_MS = (1, 2, 5, 10)
# Less than this is noise.
MARGIN = 0.05
MAX_BUSY_PERCENT = 20.0
WARM_UP_S = 2
START_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.2
NOTE = "# tuned"

logger = logging.getLogger(__name__)


class TuneError(UserError):
    """The settings cannot be measured, or none is good; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure a model's settings within this machine's cores and memory, and write down the best.

    Attributes:
        model: Its name.
        requests: JSON lines, each the body of a request, to be sent in turn; by default a request
            of golden rows.
        rows: Golden rows in a request.
        connections: Callers, each of which sends a request when it has the answer to the last.
        seconds: Duration of a measurement.
        store: Folder of the archives.
        dry_run: Only print what was measured.
    """

    model: str
    requests: Path | None = None
    rows: int = 1
    connections: int = 32
    seconds: int = 5
    store: Path = MODEL_STORE
    dry_run: bool = False


@dataclass(frozen=True)
class Setting:
    """What is tuned of a ``model-config.yaml``.

    Attributes:
        workers: ``minWorkers`` and ``maxWorkers``.
        batch_size: ``batchSize``.
        delay_ms: ``maxBatchDelay``.
        threads: ``threads`` of the section ``handler``; None for a model that has no such line.
    """

    workers: int
    batch_size: int
    delay_ms: int
    threads: int | None

    @classmethod
    def read(cls, text: str) -> Setting:
        """Read it from the file's text.

        Raises:
            TuneError: If a key is missing.
        """
        config = yaml.safe_load(text)
        try:
            return cls(
                workers=config["minWorkers"],
                batch_size=config["batchSize"],
                delay_ms=config["maxBatchDelay"],
                threads=(config.get("handler") or {}).get("threads"),
            )
        except KeyError as error:
            raise TuneError(f"{catalog.CONFIG_FILE}: expected {error}, got no such key") from error

    def write(self, text: str) -> str:
        """The file's text with this setting; every other character is as it was.

        Raises:
            TuneError: If a key has no line of its own.
        """
        values = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.delay_ms,
            " +threads": self.threads,
        }
        for key, value in values.items():
            text = re.sub(rf"^({key}: *)\d+", rf"\g<1>{value}", text, flags=re.MULTILINE)
        if Setting.read(text) != self:
            keys = ", ".join(key.strip(" +") for key in values)
            raise TuneError(f"{catalog.CONFIG_FILE}: expected a line for each of {keys}")
        return text

    def __str__(self) -> str:
        """In the words of the file."""
        threads = "" if self.threads is None else f"threads {self.threads}, "
        return (
            f"workers {self.workers}, {threads}batchSize {self.batch_size}, "
            f"maxBatchDelay {self.delay_ms}"
        )


@dataclass(frozen=True)
class Point:
    """A setting and what came of it.

    Attributes:
        setting: The setting.
        load: What the callers saw.
        worker_bytes: Memory of its largest worker.
    """

    setting: Setting
    load: Load
    worker_bytes: int


Measure = Callable[[Setting], Awaitable[Point]]


async def climb(present: Setting, budget: Budget, measure: Measure) -> None:
    """Measure settings, from the present one on, until no step brings more requests/s.

    Args:
        present: Where to begin; measured even if it exceeds the budget.
        budget: What all others stay within.
        measure: Measures a setting, and any setting only once.
    """
    first = await measure(present)
    for_workers = budget.memory_bytes - JAVA_BYTES
    max_workers = max(1, min(budget.cores, int(for_workers / first.worker_bytes)))
    start = replace(present, workers=min(present.workers, max_workers))
    best, before = await measure(fitting(start, budget.cores)), None
    while best is not before:
        before = best
        for knob, up in product(("workers", "batch_size", "delay_ms", "threads"), (True, False)):
            while ahead := step(best.setting, knob, up, budget.cores):
                if ahead.workers > max_workers:
                    break
                point = await measure(ahead)
                if not _faster(point.load, best.load):
                    break
                best = point


def _faster(load: Load, other: Load) -> bool:
    """Whether it is, by more than noise."""
    if load.errors or other.errors:
        return not load.errors
    return load.requests_per_s > (1 + MARGIN) * other.requests_per_s


def step(setting: Setting, knob: str, up: bool, cores: int) -> Setting | None:
    """The setting with the next value of one knob; None if there is no further value.

    Threads make room for more workers, and workers for more threads.
    """
    counts = sorted({2**i for i in range(cores.bit_length())} | {cores})
    ladder = {"batch_size": BATCH_SIZES, "delay_ms": DELAYS_MS}.get(knob, counts)
    value = getattr(setting, knob)
    if value is None:
        return None
    further = [rung for rung in ladder if (rung > value if up else rung < value)]
    if not further:
        return None
    changed = replace(setting, **{knob: min(further) if up else max(further)})
    return fitting(changed, cores, keep=knob)


def fitting(setting: Setting, cores: int, keep: str = "workers") -> Setting:
    """The setting with no more workers x threads than cores; one of both is kept if possible."""
    workers, threads = min(setting.workers, cores), min(setting.threads or 1, cores)
    if keep == "threads":
        workers = min(workers, cores // threads)
    else:
        threads = min(threads, cores // workers)
    return replace(setting, workers=workers, threads=setting.threads and threads)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in requests/s or p99 without losing in the other."""
    sound = [point for point in points if not point.load.errors]
    by_speed = sorted(sound, key=lambda p: (-p.load.requests_per_s, p.load.latency_p99_ms))
    front: list[Point] = []
    for point in by_speed:
        if not front or point.load.latency_p99_ms < front[-1].load.latency_p99_ms:
            front.append(point)
    return front


def choose(points: Sequence[Point], cores: int) -> Point:
    """The lowest p99 among those with about the most requests/s.

    The first point, that of the present setting, is left only for one that is better by more
    than noise.

    Raises:
        TuneError: If no setting within the cores answered every request.
    """
    fit = [p for p in points if not p.load.errors and fitting(p.setting, cores) == p.setting]
    if not fit:
        raise TuneError("no setting answered every request in time; try fewer --connections")
    least = (1 - MARGIN) * max(point.load.requests_per_s for point in fit)
    near = [point for point in fit if point.load.requests_per_s >= least]
    best = min(near, key=lambda point: point.load.latency_p99_ms)
    first = points[0]
    stays = first.load.latency_p99_ms <= (1 + MARGIN) * best.load.latency_p99_ms
    return first if first in near and stays else best


async def sweep(config: Config, mar: Path, text: str, points: dict[Setting, Point]) -> None:
    """Measure an archive with the settings that are worth it.

    Args:
        config: What to send, and how long.
        mar: The archive.
        text: The present ``model-config.yaml``.
        points: Takes each setting as soon as it is measured.

    Raises:
        ArchiveError: If there is no archive, or a damaged one.
        LoadError: If the load generator fails.
        RequestsError: If the file of requests cannot be used, or the model refuses one.
        ServeError: If TorchServe does not start.
        TorchServeError: If TorchServe does not do what it is asked.
        TuneError: If the archive cannot be loaded with a setting.
    """
    archive = ArchiveFile.read(mar)
    model, version = mar.stem, archive.version
    if config.requests:
        bodies = read_requests(config.requests)
    else:
        rows = list(islice(cycle(archive.golden.rows), config.rows))
        bodies = [orjson.dumps({"data": rows})]
    budget = Budget.read()
    with tempfile.TemporaryDirectory(prefix="recmar-tune-") as scratch:
        body = Path(scratch) / "requests.jsonl"
        body.write_bytes(b"\n".join(bodies))
        async with empty_torchserve(Path(scratch)) as (client, settings):
            served = settings.model_store / mar.name
            url = f"{client.inference_url}/predictions/{model}"

            async def measure(setting: Setting) -> Point:
                if setting in points:
                    return points[setting]
                bar.set_description_str(str(setting))
                with_config(mar, setting.write(text), served)
                try:
                    async with loaded(client, model, version, served):
                        if not points:
                            await check_requests(config, client, model, version, bodies)
                        for seconds in (WARM_UP_S, config.seconds):
                            seen = await asyncio.to_thread(
                                load, url, body, config.connections, seconds
                            )
                        worker_bytes = await largest_worker_bytes(client, model, version)
                except RolloutError as error:
                    told = torchserve.load_failure(settings.log, model, version)
                    raise TuneError(f"{model} with {setting}: {told or error}") from error
                await retire(client, model, version)
                bar.update()
                points[setting] = Point(setting, seen, worker_bytes)
                return points[setting]

            with tqdm(
                bar_format="{n} measured in {elapsed}, now {desc}", disable=None, leave=False
            ) as bar:
                await climb(Setting.read(text), budget, measure)


@asynccontextmanager
async def empty_torchserve(scratch: Path) -> AsyncIterator[tuple[TorchServe, Settings]]:
    """A TorchServe without models while the block runs.

    Args:
        scratch: Gets its model store and its log.

    Raises:
        ServeError: If it does not start.
    """
    names = ("INFERENCE_PORT", "MANAGEMENT_PORT", "METRICS_PORT", "SIDECAR_PORT")
    ports = map(str, free_ports(len(names)))
    places = {"MODEL_STORE": f"{scratch}/store", "LOG_LOCATION": f"{scratch}/logs"}
    settings = Settings.from_env({**dict(zip(names, ports, strict=True)), **places})
    settings.model_store.mkdir()
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
                yield client, settings
        finally:
            torchserve.terminate(server)


async def check_requests(
    config: Config, client: TorchServe, model: str, version: str, bodies: Sequence[bytes]
) -> None:
    """Send each request once: refusals are quick, and would look like speed.

    Raises:
        RequestsError: If one is not answered with predictions.
    """
    [done] = await replay(client, model, [version], bodies)
    if done.errors:
        number = done.predictions.index(None) + 1
        raise RequestsError(f"{config.requests or 'golden rows'}:{number}: {done.errors[0]}")


async def largest_worker_bytes(client: TorchServe, model: str, version: str) -> int:
    """Resident memory of a version's largest worker.

    Raises:
        TuneError: If one died.
    """
    known = await client.version(model, version)
    pids = known.pids.values() if known else ()
    try:
        return max(psutil.Process(pid).memory_info().rss for pid in pids)
    except (psutil.NoSuchProcess, ValueError) as error:  # TorchServe says -1 until it is back
        raise TuneError(
            f"{model} {version}: a worker died under the load; try fewer --rows or --connections"
        ) from error


def table(points: Sequence[Point], chosen: Point) -> Table:
    """What was measured, the fastest first, at most 80 columns wide."""
    front = pareto_front(points)
    shown = Table(box=box.SIMPLE_HEAD, caption="front: no other is faster at a lower p99")
    for name in ("workers\nx threads", "batch", "delay\nms", "requests/s", "p50 ms", "p99 ms"):
        shown.add_column(name, justify="right")
    shown.add_column("front")
    shown.add_column("")
    for point in sorted(points, key=lambda point: -point.load.requests_per_s):
        setting, seen = point.setting, point.load
        notes = [
            "present" if point is points[0] else "",
            "chosen" if point is chosen else "",
            f"{seen.errors:,} errors" if seen.errors else "",
        ]
        shown.add_row(
            f"{setting.workers} x {setting.threads or 1}",
            str(setting.batch_size),
            str(setting.delay_ms),
            f"{seen.requests_per_s:,.0f}",
            f"{seen.latency_p50_ms:.2f}",
            f"{seen.latency_p99_ms:.2f}",
            "*" if point in front else "",
            ", ".join(filter(None, notes)),
        )
    return shown


def annotated(text: str, config: Config, present: Point, chosen: Point) -> str:
    """The file's text with the choice, and at its head the figures instead of former ones."""
    what = config.requests.name if config.requests else f"rows a request: {config.rows}"
    today, cores = datetime.now(UTC).date(), Budget.read().cores
    notes = [
        f"{today} on {cores} cores with {config.connections} connections, {what}",
        f"to {_figures(chosen)}",
    ]
    if chosen is not present:
        notes.append(f"from {_figures(present)}")
    lines = [line for line in text.splitlines() if not line.startswith(NOTE)]
    return chosen.setting.write("\n".join([*(f"{NOTE} {note}" for note in notes), *lines, ""]))


def _figures(point: Point) -> str:
    speed, p99_ms = point.load.requests_per_s, point.load.latency_p99_ms
    return f"{point.setting}: {speed:,.0f} requests/s, p99 {p99_ms:.2f} ms"


def tune(config: Config) -> int:
    """Measure, print, and write the choice; 0, or 130 if it was interrupted.

    Raises:
        TuneError: If a flag makes no sense, or no setting is good.
        UnknownModelError: If there is no such model.
    """
    path = catalog.get(config.model).config_path
    mar = config.store / f"{config.model}.mar"
    for flag in ("rows", "connections", "seconds"):
        if getattr(config, flag) < 1:
            raise TuneError(f"--{flag} {getattr(config, flag)}: expected 1 or more")
    if generator() != "wrk":
        logger.warning("the load comes from %s", generator())
    if (busy := psutil.cpu_percent(interval=1)) > MAX_BUSY_PERCENT:
        logger.warning("other programs use %.0f %% of the machine: noise", busy)
    text = path.read_text(encoding="utf-8")
    points: dict[Setting, Point] = {}
    interrupted = False
    try:
        asyncio.run(sweep(config, mar, text, points))
    except KeyboardInterrupt:
        interrupted = True
    if points:
        measured = [*points.values()]
        chosen = choose(measured, Budget.read().cores)
        Console().print(table(measured, chosen))
    shown = path.relative_to(catalog.ROOT)
    if interrupted or config.dry_run:
        logger.info("%s%s is as it was", "interrupted: " if interrupted else "", shown)
        return 130 if interrupted else 0
    path.write_text(annotated(text, config, measured[0], chosen), encoding="utf-8")
    print(f"{shown}: {chosen.setting}")
    print("next: see whether its other comments still hold")
    print(f"      make archive MODEL={config.model}, and start the server again")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, prog="python -m scripts.tune", args=argv)
    logs.to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return tune(config)
    except (
        ArchiveError,
        LoadError,
        RequestsError,
        ServeError,
        TorchServeError,
        TuneError,
        catalog.UnknownModelError,
    ) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:  # before there was anything to measure
        return 130


if __name__ == "__main__":
    sys.exit(main())
