"""Compare serving with its alternatives in one run: ``python -m bench.serving``.

The services are xgb and deepfm, each as our archive and in a FastAPI service that scores the same
files; din, with candidates that share a history; a handler that does nothing, which is the upper
limit of our TorchServe; and our xgb archive in a TorchServe with default settings. Two routes of
the sidecar follow, each compared with the model behind it and with FastAPI that has the model in
its process. Services that are compared are measured in turns, so that a busy moment of the machine
affects all of them.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import psutil
import requests
import tyro
from rich.console import Console

from archive.package import MODEL_STORE
from bench import routes
from bench.measure import (
    COMPARED,
    Case,
    Results,
    Service,
    Target,
    Timing,
    check_answers,
    measure,
    plot,
    tables,
    verdict,
)
from bench.services import DO_NOTHING, default_torchserve, fastapi, our_torchserve
from handlers.errors import UserError
from handlers.signature import GOLDEN_FILE, SIGNATURE_FILE
from serving.load import generator
from serving.testing import Server
from sidecar.translate import ROUTES
from training.artifacts import write_json

MODELS = ("xgb", "deepfm")
ROWS = (1, 100)
HISTORY = 50
MAX_BUSY_PERCENT = 20.0
LIBRARIES = (
    *("torch", "xgboost", "torchserve", "fastapi", "uvicorn", "uvloop", "httptools", "aiohttp"),
)


@dataclass(frozen=True)
class Config(Timing):
    """Measure requests/s and latency of our archives and of the alternatives.

    Attributes:
        store: Folder of the archives.
        results: Folder for serving.json, serving.png and sidecar.png.
    """

    store: Path = MODEL_STORE
    results: Path = Path("bench/results")


def run(config: Config) -> tuple[Results, Results, list[Target]]:
    """Start all services, measure them and stop them.

    Returns:
        The results of the models, those of the sidecar's routes, and the targets.

    Raises:
        UserError: If an archive is missing, a service does not start, the services disagree on the
            predictions, or the load generator fails.
    """
    archives = {mar.stem: mar for mar in sorted(config.store.glob("*.mar"))}
    names = [*MODELS, "din", *(ROUTES[route] for route in routes.MEASURED)]
    if missing := [name for name in names if name not in archives]:
        raise UserError(
            f"{config.store} has no archive of {', '.join(missing)}; run: make train-all archive"
        )
    with tempfile.TemporaryDirectory(prefix="recmar-bench-") as folder:
        scratch = Path(folder)
        bodies = {
            model: {
                rows: write_body(archives[model], rows, scratch / f"{model}-{rows}.json")
                for rows in ROWS
            }
            for model in MODELS
        }
        with ExitStack() as stack:
            started = time.monotonic()
            server = stack.enter_context(our_torchserve(archives, scratch))
            ready_s = time.monotonic() - started
            in_fastapi = {n: archives[n] for n in names if n != "din"}
            fastapi_url = stack.enter_context(fastapi(in_fastapi, scratch))
            ours = f"{server.inference_url}/predictions"
            by_model = [
                [
                    Service(f"{model} ours", f"{ours}/{model}", bodies[model]),
                    Service(
                        f"{model} FastAPI", f"{fastapi_url}/predictions/{model}", bodies[model]
                    ),
                ]
                for model in MODELS
            ]
            by_route = routes.services(archives, server, fastapi_url, scratch)
            for compared in (*by_model, *by_route.values()):
                check_answers(compared)
            nothing = Service("nothing", f"{ours}/{DO_NOTHING}", bodies["xgb"])
            din = Service(
                "din ours",
                f"{ours}/din",
                {n: write_candidates(archives["din"], n, scratch / f"din-{n}.json") for n in ROWS},
            )
            results = measure([*chain(*by_model), din, nothing], config)
            sidecar_results = measure([*chain(*by_route.values())], config)
            memory_mb = max(worker_memory_mb(server, name) for name in archives)
        with default_torchserve(archives["xgb"], scratch) as url:
            service = Service("xgb default", f"{url}/predictions/xgb", bodies["xgb"])
            results |= measure([service], config)
    return (
        results,
        sidecar_results,
        [
            *targets(results),
            *routes.targets(by_route, sidecar_results),
            Target("all models READY after, s", ready_s, 30, at_least=False),
            Target("memory of a worker, MB", memory_mb, 350, at_least=False),
        ],
    )


def write_body(mar: Path, rows: int, path: Path) -> Path:
    """Write a request of golden rows of an archive, with their cross features filled in."""
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


def write_candidates(mar: Path, rows: int, path: Path) -> Path:
    """Write a request of golden rows that share the longest of their histories, HISTORY items."""
    request = json.loads(write_body(mar, rows, path).read_text())
    histories: list[list[Any]] = [row["history_item_ids"] for row in request["data"]]
    longest: list[Any] = max(histories, key=len)
    items = list(islice(cycle(longest), HISTORY))
    for row in request["data"]:
        row["history_item_ids"] = items
    path.write_text(json.dumps(request))
    return path


def worker_memory_mb(server: Server, model: str) -> float:
    """Return the resident memory of a model's largest worker."""
    described = requests.get(f"{server.management_url}/models/{model}", timeout=30).json()
    workers = [psutil.Process(worker["pid"]) for worker in described[0]["workers"]]
    return max(worker.memory_info().rss for worker in workers) / 1e6


def targets(results: Results) -> list[Target]:
    """Return the bars of our archives.

    They must reach 0.7 of the throughput of a handler that does nothing and twice that of FastAPI,
    with at most FastAPI's p99 and without errors. din may take twice deepfm's time.
    """
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
    one_caller = Case(max(ROWS), 1)
    ratio = (
        results["din ours"][one_caller].latency_p50_ms
        / results["deepfm ours"][one_caller].latency_p50_ms
    )
    what = f"din, {max(ROWS)} rows with a history of {HISTORY}: p50 over deepfm's"
    found.append(Target(what, ratio, 2, at_least=False))
    return found


def machine() -> dict[str, Any]:
    """Describe the machine and the libraries, on which the figures depend."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "busy_percent": psutil.cpu_percent(interval=1),
        "load_generator": generator(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, args=argv)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    try:
        results, sidecar_results, reached = run(config)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    busy = max(facts["busy_percent"], psutil.cpu_percent(interval=1))
    if busy > MAX_BUSY_PERCENT:
        print(
            f"warning: other programs use {busy:.0f} % of the machine: expect noise",
            file=sys.stderr,
        )
    console = Console()
    for table in (*tables(results), *tables(sidecar_results), verdict(reached)):
        console.print(table)
    config.results.mkdir(parents=True, exist_ok=True)
    plot(results, config.results / "serving.png")
    plot(sidecar_results, config.results / "sidecar.png")
    report = {
        "machine": facts,
        "results": [
            {"service": name, **asdict(case), **asdict(seen)}
            for name, loads in (results | sidecar_results).items()
            for case, seen in loads.items()
        ],
        "targets": [asdict(target) | {"met": target.met} for target in reached],
    }
    write_json(config.results / "serving.json", report)
    print(f"results: {config.results}/serving.json, serving.png, sidecar.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
