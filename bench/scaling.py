"""Measure how cost grows with rows, users, items, models and requests: ``python -m bench.scaling``.

Each curve is printed as a table and drawn; docs/scaling.md uses the figures.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from bench.ann import timed
from handlers.errors import UserError
from handlers.models.deepfm import DeepFM
from handlers.models.graph_recall import MAX_EXACT, Neighbours
from handlers.models.weights import network_bytes
from serving.archive_file import SAMPLE_FILE
from serving.load import load
from serving.testing import Server, running_server
from training.engine.fit import FitConfig, WeightedRows, fit
from training.engine.worker import seed_everything
from training.tasks.ranking.world import impressions

RESULTS = Path("bench/results")
SERVED = ("xgb", "deepfm", "mmoe", "two_tower", "item_tower", "user_tower", "dssm", "youtube_dnn")
LOAD_S = 4
BATCHES = 40
HISTORY = 50

Figures = dict[str, float]  # by name and unit


@dataclass(frozen=True)
class Config:
    """Measure how cost grows.

    Attributes:
        store: Folder of the archives to serve.
    """

    store: Path = Path("model-store")


@dataclass(frozen=True)
class Curve:
    """A cost as a function of a size.

    Attributes:
        name: Name of the size.
        sizes: Sizes to measure.
        measure: Measures the cost at one size.
    """

    name: str
    sizes: Sequence[int]
    measure: Callable[[int], Figures]


def train_on_rows(n: int) -> Figures:
    """Train on n rows, one epoch or 100 trees, from Parquet to the artifacts."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.parquet"
        impressions(n, seed=0)[0].to_parquet(table)
        for model, epochs in (("deepfm", 1), ("xgb", 100)):
            cost = train(model, table, "--epochs", str(epochs))
            figures |= {f"{model} s": cost.seconds, f"{model} MB": cost.memory_mb}
    return figures


def train_on_lists(n: int) -> Figures:
    """Train one epoch on n rows with a time, a list of 5 tags and a history of 50 items."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_lists(n, path)
        flags = (
            *("--epochs", "1", "--timestamp", "event_time"),
            *("--features", "user_id,item_id,item_price", "--categorical", "user_id,item_id"),
        )
        for model, own in {
            "deepfm": ("--multi", "tags,history_item_ids"),  # one more list
            "din": ("--multi", "tags", "--no-without-history"),
        }.items():
            cost = train(model, path, *flags, *own)
            figures |= {f"{model} rows/s": cost.rows_per_s, f"{model} MB": cost.memory_mb}
    return figures


def write_lists(n: int, path: Path) -> None:
    """Write random rows: the cost does not depend on what there is to learn."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(1, (100_000, 10_000), size=(n, 2)).T
    tags = pa.array(rng.integers(100, size=(n, 5)).ravel())
    histories = pa.array(rng.integers(1, 10_000, size=(n, HISTORY)).ravel())
    table = pa.table(
        {
            "user_id": users,
            "item_id": items,
            "item_price": rng.random(n),
            "event_time": 1_790_000_000 + rng.integers(10**7, size=n),
            "tags": pa.FixedSizeListArray.from_arrays(tags, 5),
            "history_item_ids": pa.FixedSizeListArray.from_arrays(histories, HISTORY),
            "label": rng.integers(2, size=n),
        }
    )
    pq.write_table(table, path)


class Cost(NamedTuple):
    """The cost of a training run.

    Attributes:
        seconds: From the start of the command to its end.
        memory_mb: The most memory it held.
        rows_per_s: Rows per second in the training loop, as the command prints them; NaN for trees.
    """

    seconds: float
    memory_mb: float
    rows_per_s: float


def train(model: str, table: Path, *flags: str) -> Cost:
    """Train in a process of its own.

    Raises:
        UserError: If it fails.
    """
    command = [sys.executable, "-m", f"training.train_{model}", "--data-path", str(table), *flags]
    command += ["--artifacts-dir", str(table.parent)]
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=printed)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        if process.returncode != 0:
            raise UserError(f"{' '.join(command)}: {printed.read().strip()}")
        speed = re.search(r"([0-9]+) rows/s", printed.read())
    return Cost(seconds, usage.ru_maxrss / 1e3, float(speed[1]) if speed else math.nan)


def train_with_users(n: int) -> Figures:
    """Train DeepFM with an embedding for each of n users."""
    seed_everything(0)
    config = FitConfig(epochs=1)
    n_rows = BATCHES * config.batch_size
    network = DeepFM([0, 0, 0, 0, 0, 0, n])
    matrix = torch.rand(n_rows, 7)
    matrix[:, 6] = torch.randint(2, n, (n_rows,))
    labels = torch.randint(2, (n_rows, 1)).float()
    rows = WeightedRows(matrix, labels, torch.ones(n_rows))
    few = WeightedRows(*(part[: config.batch_size] for part in rows))

    def loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(logits, targets[:, 0], weights)

    started = time.perf_counter()
    fit(network, loss, rows, few, config)
    return {
        "training rows/s": n_rows / (time.perf_counter() - started),
        "weights MB": len(network_bytes(network)) / 1e6,
    }


def search_items(n: int) -> Figures:
    """Find the nearest 20 of n vectors of 64 dimensions, one query at a time."""
    vectors = np.random.default_rng(0).standard_normal((n, 64), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with threadpool_limits(1):
        started = time.perf_counter()
        neighbours = Neighbours.build(vectors)
        built_s = time.perf_counter() - started
        _, latencies_ms = timed(neighbours, np.arange(100), 20)
    with tempfile.TemporaryDirectory() as folder:
        neighbours.save(Path(folder))
        size_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "query p50 ms": float(np.median(latencies_ms)),
        "archive MB": size_bytes / 1e6,
        "index built s": built_s if n > MAX_EXACT else math.nan,
    }


@contextmanager
def serving(store: Path, models: Sequence[str]) -> Iterator[Server]:
    """Serve the archives of some models."""
    with running_server(store.resolve(), ENABLED_MODELS=",".join(models)) as server:
        yield server


def serve_models(store: Path, n: int) -> Figures:
    """Serve n models with their configured workers."""
    started = time.perf_counter()
    with serving(store, SERVED[:n]) as server:
        ready_s = time.perf_counter() - started
        family = psutil.Process(server.process.pid).children(recursive=True)
        workers = [p for p in family if "model_service_worker.py" in " ".join(p.cmdline())]
        memory_bytes = sum(process.memory_full_info().pss for process in family)
    return {
        "workers": len(workers),
        "READY s": ready_s,
        "memory MB": memory_bytes / 1e6,
    }


def send_requests(server: Server, body: Path, connections: int) -> Figures:
    """Send one-row requests to xgb over a number of connections."""
    url = f"{server.inference_url}/predictions/{SERVED[0]}"
    seen = load(url, body, connections, LOAD_S)
    return {
        "requests/s": seen.requests_per_s,
        "p50 ms": seen.latency_p50_ms,
        "p99 ms": seen.latency_p99_ms,
        "errors": seen.errors,
    }


def check_archives(store: Path) -> None:
    """Check that the store has the archives to serve.

    Raises:
        UserError: If one is missing.
    """
    if missing := [name for name in SERVED if not (store / f"{name}.mar").is_file()]:
        raise UserError(
            f"{store} has no archive of {', '.join(missing)}; run: make train-all archive"
        )


def measure(curve: Curve) -> list[Figures]:
    """Measure a curve."""
    sizes = tqdm(curve.sizes, desc=curve.name, disable=None, leave=False)
    return [curve.measure(size) for size in sizes]


def table(curve: Curve, points: Sequence[Figures]) -> Table:
    """Lay out a curve as a table."""
    shown = Table(curve.name, *points[0], box=box.SIMPLE_HEAD)
    for column in shown.columns:
        column.justify = "right"
    for size, point in zip(curve.sizes, points, strict=True):
        cells = ("" if math.isnan(value) else f"{value:,.4g}" for value in point.values())
        shown.add_row(f"{size:,}", *cells)
    return shown


def plot(results: Sequence[tuple[Curve, Sequence[Figures]]], path: Path) -> None:
    """Draw each curve with logarithmic axes."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (curve, points) in zip(axes.flat, results, strict=False):
        for name in points[0]:
            axis.plot(curve.sizes, [point[name] for point in points], marker="o", label=name)
        axis.set(title=curve.name, xscale="log", yscale="log")
        axis.set_xticks(curve.sizes, [f"{size:,}" for size in curve.sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, prog="python -m bench.scaling", args=argv)
    console, results = Console(), []

    def report(curve: Curve) -> None:
        points = measure(curve)
        console.print(table(curve, points))
        results.append((curve, points))

    try:
        check_archives(config.store)
        report(Curve("rows", (100_000, 1_000_000, 4_000_000), train_on_rows))
        report(Curve("rows with lists", (100_000, 1_000_000), train_on_lists))
        report(Curve("users", (10_000, 100_000, 1_000_000), train_with_users))
        report(Curve("items", (1_000, 10_000, 100_000, 1_000_000), search_items))
        report(Curve("models", (1, 2, 4, 8), lambda n: serve_models(config.store, n)))
        with tempfile.TemporaryDirectory() as folder, serving(config.store, SERVED[:1]) as server:
            body = Path(folder) / SAMPLE_FILE
            with zipfile.ZipFile(config.store / f"{SERVED[0]}.mar") as archive:
                body.write_bytes(archive.read(SAMPLE_FILE).strip())
            report(Curve("connections", (1, 4, 16, 64), lambda n: send_requests(server, body, n)))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    path = RESULTS / "scaling.png"
    plot(results, path)
    print(f"curves: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
