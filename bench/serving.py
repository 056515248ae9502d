"""Measure serving beside the alternatives, in one run: ``python -m bench.serving``.

xgb and deepfm, each in our archive and in a FastAPI service that scores the same files; a handler
that does nothing, which is the most that our TorchServe could do; and our xgb archive in a
TorchServe with default settings. All but the last are measured in turns, so that a busy moment of
the machine falls on each of them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import psutil
import requests
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from archive.package import MODEL_STORE
from bench.load import Load, LoadError, generator, load
from bench.services import (
    DO_NOTHING,
    ServiceError,
    default_torchserve,
    fastapi,
    our_torchserve,
)
from handlers.signature import GOLDEN_FILE, SIGNATURE_FILE
from tests.serving import Server
from training.artifacts import write_json

MODELS = ("xgb", "deepfm")
ROWS = (1, 100)
CONNECTIONS = (1, 32, 128)
COMPARED = 32  # connections at which the targets are set
TOLERANCE = 1e-5
MAX_BUSY_PERCENT = 20.0
LIBRARIES = ("torch", "xgboost", "torchserve", "fastapi", "uvicorn", "uvloop", "httptools")


class BenchError(RuntimeError):
    """The bench cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Config:
    """Measure requests/s and latency of our archives and of the alternatives.

    Attributes:
        store: Folder of the archives.
        seconds: Duration of a measurement.
        rounds: Measurements of each case; the median counts.
        warm_up_s: Seconds of load on each service beforehand, for each number of rows.
        results: Folder for serving.json and serving.png.
    """

    store: Path = MODEL_STORE
    seconds: int = 1
    rounds: int = 4
    warm_up_s: int = 3
    results: Path = Path("bench/results")


@dataclass(frozen=True)
class Service:
    """What is measured: a column of the tables.

    Attributes:
        name: In the tables.
        model: Whose requests it gets.
        url: Where it answers them.
    """

    name: str
    model: str
    url: str


@dataclass(frozen=True)
class Case:
    """A line of the tables: rows in a request, and connections."""

    rows: int
    connections: int


CASES = [Case(rows, connections) for rows in ROWS for connections in CONNECTIONS]
Results = dict[str, dict[Case, Load]]  # by the name of a service


@dataclass(frozen=True)
class Target:
    """What is to be reached, and what was."""

    what: str
    measured: float
    bar: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar


def run(config: Config) -> tuple[Results, list[Target]]:
    """Start all services, measure them, stop them.

    Raises:
        BenchError: If an archive is missing, or the services do not agree on the predictions.
        LoadError: If the load generator fails.
    """
    archives = {mar.stem: mar for mar in sorted(config.store.glob("*.mar"))}
    if missing := [name for name in MODELS if name not in archives]:
        raise BenchError(
            f"{config.store} has no archive of {', '.join(missing)}; run: make train-all archive"
        )
    with tempfile.TemporaryDirectory(prefix="recmar-bench-") as folder:
        scratch = Path(folder)
        bodies = {
            (model, rows): write_body(archives[model], rows, scratch / f"{model}-{rows}.json")
            for model in MODELS
            for rows in ROWS
        }
        with ExitStack() as stack:
            started = time.monotonic()
            server = stack.enter_context(our_torchserve(archives, scratch))
            ready_s = time.monotonic() - started
            ours = server.inference_url
            theirs = stack.enter_context(fastapi({m: archives[m] for m in MODELS}, scratch))
            services = [
                Service(f"{model} {name}", model, f"{url}/predictions/{model}")
                for model in MODELS
                for name, url in (("ours", ours), ("FastAPI", theirs))
            ]
            check_predictions(services, bodies)
            services.append(Service("nothing", "xgb", f"{ours}/predictions/{DO_NOTHING}"))
            results = measure(services, bodies, config)
            memory_mb = max(worker_memory_mb(server, name) for name in archives)
        with default_torchserve(archives["xgb"], scratch) as url:
            service = Service("xgb default", "xgb", f"{url}/predictions/xgb")
            results |= measure([service], bodies, config)
    return results, [
        *targets(results),
        Target("all models READY after, s", ready_s, 30, at_least=False),
        Target("memory of a worker, MB", memory_mb, 350, at_least=False),
    ]


def write_body(mar: Path, rows: int, path: Path) -> Path:
    """Write a request of so many rows of an archive's golden ones, as the callers send them."""
    with zipfile.ZipFile(mar) as archive:
        features = json.loads(archive.read(SIGNATURE_FILE))["features"]
        golden = json.loads(archive.read(GOLDEN_FILE))["rows"]
    crosses = {f["name"]: f["product_of"] for f in features if f["product_of"]}
    complete = [row for row in golden if len(row) == max(map(len, golden))]
    for row in complete:
        for name, (left, right) in crosses.items():
            row.setdefault(name, row[left] * row[right])
    path.write_text(json.dumps({"data": list(islice(cycle(complete), rows))}))
    return path


def check_predictions(services: Sequence[Service], bodies: Mapping[tuple[str, int], Path]) -> None:
    """See that the services of a model do the same work.

    Raises:
        BenchError: If their predictions differ.
    """
    for model in MODELS:
        body = bodies[model, max(ROWS)].read_bytes()
        answers = []
        for service in services:
            if service.model == model:
                headers = {"Content-Type": "application/json"}
                response = requests.post(service.url, data=body, headers=headers, timeout=30)
                if not response.ok:
                    raise BenchError(f"{service.name}: {response.status_code} {response.text}")
                answers.append(response.json()["predictions"])
        if not np.allclose(answers[0], answers[1:], rtol=0, atol=TOLERANCE):
            raise BenchError(f"{model}: our predictions and FastAPI's differ")


def measure(
    services: Sequence[Service], bodies: Mapping[tuple[str, int], Path], config: Config
) -> Results:
    """Measure each case of each service, in turns; medians over the rounds."""
    warm_ups = [(service, Case(rows, COMPARED)) for rows in ROWS for service in services]
    turns = [(service, case) for case in CASES for service in services] * config.rounds
    loads: dict[tuple[str, Case], list[Load]] = {}
    total = len(warm_ups) * config.warm_up_s + len(turns) * config.seconds
    with tqdm(total=total, unit="s", disable=None, leave=False) as bar:
        for service, case in warm_ups:
            load(service.url, bodies[service.model, case.rows], COMPARED, config.warm_up_s)
            bar.update(config.warm_up_s)
        for service, case in turns:
            body = bodies[service.model, case.rows]
            seen = load(service.url, body, case.connections, config.seconds)
            loads.setdefault((service.name, case), []).append(seen)
            bar.update(config.seconds)
    return {
        service.name: {case: median(loads[service.name, case]) for case in CASES}
        for service in services
    }


def median(loads: Sequence[Load]) -> Load:
    """The typical load of several; their errors add up."""
    return Load(
        statistics.median(load.requests_per_s for load in loads),
        statistics.median(load.latency_p50_ms for load in loads),
        statistics.median(load.latency_p99_ms for load in loads),
        sum(load.errors for load in loads),
    )


def worker_memory_mb(server: Server, model: str) -> float:
    """Resident memory of a model's largest worker."""
    told = requests.get(f"{server.management_url}/models/{model}", timeout=30).json()
    workers = [psutil.Process(worker["pid"]) for worker in told[0]["workers"]]
    return max(worker.memory_info().rss for worker in workers) / 1e6


def targets(results: Results) -> list[Target]:
    """What issue 2 asks of the measurements."""
    found = []
    for model in MODELS:
        ours, fastapi = results[f"{model} ours"], results[f"{model} FastAPI"]
        one_row = Case(1, COMPARED)
        ratio = ours[one_row].requests_per_s / results["nothing"][one_row].requests_per_s
        found.append(Target(f"{model}, 1 row: requests/s over nothing's", ratio, 0.7))
        for rows in ROWS:
            a, b = ours[Case(rows, COMPARED)], fastapi[Case(rows, COMPARED)]
            what = f"{model}, {rows} row{'s' * (rows > 1)}"
            ratio = a.requests_per_s / b.requests_per_s
            found.append(Target(f"{what}: requests/s over FastAPI's", ratio, 2))
            ratio = a.latency_p99_ms / b.latency_p99_ms
            found.append(Target(f"{what}: p99 over FastAPI's", ratio, 1, at_least=False))
        errors = sum(load.errors for load in ours.values())
        found.append(Target(f"{model}: errors", errors, 0, at_least=False))
    return found


# Report


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "busy_percent": psutil.cpu_percent(interval=1),
        "load_generator": generator(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def tables(results: Results, reached: Sequence[Target]) -> list[Table]:
    """The report for people, at most 80 columns wide."""
    shown = []
    for title, attribute, digits in (
        ("requests/s", "requests_per_s", 0),
        ("p50, ms", "latency_p50_ms", 2),
        ("p99, ms", "latency_p99_ms", 2),
    ):
        table = Table("rows", "conns", title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for name in results:
            table.add_column(name.replace(" ", "\n"), justify="right")
        for case in CASES:
            cells = [getattr(loads[case], attribute) for loads in results.values()]
            table.add_row(
                str(case.rows), str(case.connections), *(f"{cell:,.{digits}f}" for cell in cells)
            )
        shown.append(table)
    verdict = Table("at 32 connections", "measured", "target", "", box=box.SIMPLE_HEAD)
    for target in reached:
        sign = ">=" if target.at_least else "<="
        verdict.add_row(
            target.what,
            f"{target.measured:.2f}",
            f"{sign} {target.bar:g}",
            "" if target.met else "missed",
        )
    return [*shown, verdict]


def plot(results: Results, path: Path) -> None:
    """Draw requests/s and p99 over connections, a line a service."""
    figure, axes = plt.subplots(
        len(ROWS), 2, figsize=(10, 7), sharex=True, layout="constrained", squeeze=False
    )
    ticks = range(len(CONNECTIONS))
    for row, rows in zip(axes, ROWS, strict=True):
        for axis, label, attribute in (
            (row[0], "requests/s", "requests_per_s"),
            (row[1], "p99, ms", "latency_p99_ms"),
        ):
            for name, loads in results.items():
                values = [getattr(loads[Case(rows, n)], attribute) for n in CONNECTIONS]
                axis.plot(ticks, values, marker="o", label=name)
            axis.set(title=f"{label}, {rows} rows a request", yscale="log")
            axis.set_xticks(ticks, [str(n) for n in CONNECTIONS])
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("connections")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    try:
        results, reached = run(config)
    except (BenchError, LoadError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    busy = max(facts["busy_percent"], psutil.cpu_percent(interval=1))
    if busy > MAX_BUSY_PERCENT:
        print(f"warning: other programs use {busy:.0f} % of the machine: noise", file=sys.stderr)
    console = Console()
    for table in tables(results, reached):
        console.print(table)
    config.results.mkdir(parents=True, exist_ok=True)
    plot(results, config.results / "serving.png")
    report = {
        "machine": facts,
        "results": [
            {"service": name, **asdict(case), **asdict(seen)}
            for name, loads in results.items()
            for case, seen in loads.items()
        ],
        "targets": [asdict(target) | {"met": target.met} for target in reached],
    }
    write_json(config.results / "serving.json", report)
    print(f"results: {config.results}/serving.json, serving.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
