"""Compare every model's metrics with baseline, bar and oracle: ``python -m bench.quality``.

Each model is trained by its own command into a temporary folder, on the default data and, with
``--data``, on public data sets. Their flags were chosen on validation splits.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from archive import catalog
from bench.quality_runs import CALIBRATED, REAL_RUNS, Run, default_runs
from handlers.errors import UserError
from training.data.feature_flags import split_names
from training.run import INTERRUPTED, load_script

VERSION = "quality"
ORACLE = "oracle"

Reports = Mapping[str, Mapping[str, float]]  # metrics by model, as in metrics.json


@dataclass(frozen=True)
class Config:
    """Train every model and compare its metrics with its bars; fail if one is missed.

    Attributes:
        data: Folder with ml100k/, adult/, banking77/ and graphs/, to train on these as well.
        models: Names of the models to train, separated by commas; all by default.
        engine: Training engine. ray uses two workers and skips the models that gensim trains.
    """

    data: Path | None = None
    models: str = ""
    engine: Literal["local", "ray"] = "local"


@dataclass(frozen=True)
class Line:
    """A line of the table: a bar and the metric."""

    run: Run
    metric: str
    measured: float
    baseline: str
    bar: str
    oracle: str
    met: bool
    took_s: float


def train(run: Run, data: Path | None, engine: str) -> Reports:
    """Train in a temporary folder.

    Args:
        run: The training run.
        data: Folder of the public data sets.
        engine: Name of the training engine.

    Returns:
        The metrics on the test split.

    Raises:
        UserError: If training fails; the message is its own.
    """
    script, *own = catalog.get(run.model).training
    with tempfile.TemporaryDirectory(prefix="recmar-quality-") as folder:
        command = [
            *(sys.executable, "-m", f"training.{script}", *own),
            *("--artifacts-dir", folder, "--version", VERSION, *run.flags),
            *("--engine", engine),
        ]
        if run.data and data:
            prepared = Path(folder) / "data"
            prepared.mkdir()
            path = run.data.prepare(data / run.data.source, prepared)
            command += ["--data-path", str(path.resolve())]
        result = subprocess.run(
            command, cwd=catalog.ROOT, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise UserError(result.stderr.strip().removeprefix("error: "))
        metrics = Path(folder) / run.model / VERSION / "metrics.json"
        reports: Reports = json.loads(metrics.read_text())["test"]
    return reports


def compare(run: Run, reports: Reports, took_s: float) -> list[Line]:
    """Compare the metrics of a run with its bars."""
    lines = []
    for bar in run.bars:
        measured = reports[run.model][bar.metric]
        low = bar.low
        if bar.twin:
            low = max(low, reports[bar.twin][bar.metric] - bar.margin)
        oracle = reports.get(ORACLE, {}).get(bar.metric)
        known = "" if bar.known is None else f"{bar.known:.4f}*"
        lines.append(
            Line(
                run,
                bar.metric,
                measured,
                best_baseline(run.model, reports, bar.metric),
                f">= {low:.3f}" if math.isinf(bar.high) else f"{low:g}-{bar.high:g}",
                known if oracle is None else f"{oracle:.4f}",
                low <= measured <= bar.high,
                took_s,
            )
        )
    return lines


def best_baseline(model: str, reports: Reports, metric: str) -> str:
    """Return the best value of the other reports but the oracle's; empty if there is none."""
    others = [
        report[metric]
        for name, report in reports.items()
        if name not in (model, ORACLE) and metric in report
    ]
    return f"{max(others):.4f}" if others and metric != CALIBRATED.metric else ""


def table(lines: Sequence[Line]) -> Table:
    """Lay out the comparison as a table."""
    columns = ("data", "model", "metric", "ours", "baseline", "bar", "oracle", "s")
    shown = Table(*columns, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for line in lines:
        shown.add_row(
            line.run.data_name,
            line.run.model,
            line.metric,
            f"{line.measured:.4f}",
            line.baseline,
            line.bar,
            line.oracle,
            f"{line.took_s:.0f}",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, args=argv)
    runs = [*default_runs(), *(REAL_RUNS if config.data else ())]
    if config.engine == "ray":
        scripts = {run.model: load_script(catalog.get(run.model).training[0]) for run in runs}
        runs = [run for run in runs if scripts[run.model].Config.library != "gensim"]
    known = sorted({run.model for run in runs})
    models = split_names(config.models) or known
    problems = [
        f"no bars for {m}; there are for {', '.join(known)}" for m in models if m not in known
    ]
    runs = [run for run in runs if run.model in models]
    if config.data:
        sources = {config.data / run.data.source for run in runs if run.data}
        problems += [f"{path}: no such file or folder" for path in sources if not path.exists()]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 2
    lines, failed = [], False
    try:
        for run in track(runs, "training", transient=True, disable=not sys.stderr.isatty()):
            started = time.perf_counter()
            try:
                reports = train(run, config.data, config.engine)
            except (UserError, OSError) as error:
                print(f"error: {run.model} on {run.data_name}: {error}", file=sys.stderr)
                failed = True
            else:
                lines += compare(run, reports, time.perf_counter() - started)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    Console().print(table(lines))
    if any(bar.known for run in runs for bar in run.bars):
        print("* reached by others")
    missed = [line for line in lines if not line.met]
    for line in missed:
        where = f"{line.run.data_name}, {line.run.model}: {line.metric} {line.measured:.4f}"
        print(f"missed: {where}, expected {line.bar}")
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
