"""Print every model's metrics beside baseline, bar and oracle: ``python -m bench.quality``.

Each model is trained by its own command into a temporary folder, on the default data and, with
``--data``, on public data sets.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.real_data import (
    ADULT_CATEGORIES,
    ADULT_FEATURES,
    ML100K_FEATURES,
    ML100K_IDS,
    write_adult,
    write_ml100k,
)

ROOT = Path(__file__).resolve().parents[1]
VERSION = "quality"
ORACLE = "oracle"

Reports = Mapping[str, Mapping[str, float]]  # as in metrics.json: metrics by model


@dataclass(frozen=True)
class Config:
    """Train every model and compare its metrics with its bars; fails when one is missed.

    Attributes:
        data: Folder with ml100k/ and adult/, to train on these as well.
        models: Only these, separated by commas.
    """

    data: Path | None = None
    models: str = ""


@dataclass(frozen=True)
class Bar:
    """What a metric has to reach.

    Attributes:
        metric: As in metrics.json.
        low: At least.
        high: At most.
        above: Count ``low`` from the same metric of this other report.
    """

    metric: str
    low: float
    high: float = math.inf
    above: str = ""


@dataclass(frozen=True)
class DataSet:
    """Public data.

    Attributes:
        folder: Of its raw files, in ``--data``.
        write: Makes train.csv, valid.csv and test.csv of them.
        flags: Name the columns to the training command.
    """

    folder: str
    write: Callable[[Path, Path], None]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A training run and its bars.

    Attributes:
        model: ``training/train_<model>.py``.
        bars: At least one.
        data: None for the model's default data.
        flags: Hyper-parameters that differ from the default.
    """

    model: str
    bars: tuple[Bar, ...]
    data: DataSet | None = None
    flags: tuple[str, ...] = ()

    @property
    def data_name(self) -> str:
        """In the table."""
        return self.data.folder if self.data else "default"


@dataclass(frozen=True)
class Line:
    """A line of the table: a bar and what came of it."""

    run: Run
    metric: str
    measured: float
    baseline: str
    bar: str
    oracle: str
    met: bool


ML100K = DataSet(
    "ml100k",
    write_ml100k,
    ("--features", ",".join(ML100K_FEATURES), "--categorical", ",".join(ML100K_IDS)),
)
ADULT = DataSet(
    "adult",
    write_adult,
    ("--features", ",".join(ADULT_FEATURES), "--categorical", ",".join(ADULT_CATEGORIES)),
)
CALIBRATED = Bar("calibration_ratio", 0.98, 1.02)

RUNS = (
    Run("xgb", (Bar("auc", 0.742),)),
    Run("deepfm", (Bar("auc", 0.749),)),
    Run(
        "mmoe",
        (Bar("ctr_auc", 0.748), Bar("watch_time_spearman", 0.335), Bar("gmv_top_share", 0.33)),
    ),
    Run(
        "xgb",
        (Bar("auc", 0.772), CALIBRATED),
        ML100K,
        ("--eta", "0.05", "--max-depth", "6", "--min-child-weight", "20"),
    ),
    Run(
        "deepfm",
        (Bar("auc", 0.78), CALIBRATED),
        ML100K,
        ("--lr", "4e-3", "--embedding-decay", "0.5", "--dropout", "0.2"),
    ),
    Run(
        "mmoe",
        (
            Bar("income_auc", 0.915),
            Bar("income_auc", -0.003, above="single task"),
            Bar("never_married_auc", -0.003, above="single task"),
        ),
        ADULT,
        (
            *("--targets", "income,never_married", "--tasks", "income,never_married"),
            *("--task-weights", "1", "1", "--batch-size", "512", "--epochs", "12"),
            *("--lr", "4e-3", "--embedding-decay", "1", "--dropout", "0.2"),
        ),
    ),
)


def train(run: Run, data: Path | None) -> Reports:
    """Train in a temporary folder.

    Raises:
        RuntimeError: If training fails, with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="recmar-quality-") as folder:
        command = [
            *(sys.executable, "-m", f"training.train_{run.model}"),
            *("--artifacts-dir", folder, "--version", VERSION, *run.flags),
        ]
        if run.data and data:
            splits = Path(folder) / "data"
            splits.mkdir()
            run.data.write(data / run.data.folder, splits)
            command += ["--data-path", str(splits), *run.data.flags]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"{run.model} on {run.data_name}: {result.stderr}")
        metrics = Path(folder) / run.model / VERSION / "metrics.json"
        reports: Reports = json.loads(metrics.read_text())["test"]
    return reports


def compare(run: Run, reports: Reports) -> list[Line]:
    """Hold the metrics of a run against its bars."""
    lines = []
    for bar in run.bars:
        measured = reports[run.model][bar.metric]
        low = bar.low + (reports[bar.above][bar.metric] if bar.above else 0)
        oracle = reports.get(ORACLE, {}).get(bar.metric)
        lines.append(
            Line(
                run,
                bar.metric,
                measured,
                best_baseline(run.model, reports, bar.metric),
                f">= {low:.3f}" if math.isinf(bar.high) else f"{low:g}-{bar.high:g}",
                "" if oracle is None else f"{oracle:.4f}",
                low <= measured <= bar.high,
            )
        )
    return lines


def best_baseline(model: str, reports: Reports, metric: str) -> str:
    """The best that is neither the model's nor the oracle's."""
    others = [
        report[metric]
        for name, report in reports.items()
        if name not in (model, ORACLE) and metric in report
    ]
    return f"{max(others):.4f}" if others and metric != CALIBRATED.metric else ""


def table(lines: Sequence[Line]) -> Table:
    """The report for people."""
    columns = ("data", "model", "metric", "measured", "baseline", "bar", "oracle", "")
    shown = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for line in lines:
        shown.add_row(
            line.run.data_name,
            line.run.model,
            line.metric,
            f"{line.measured:.4f}",
            line.baseline,
            line.bar,
            line.oracle,
            "" if line.met else "missed",
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    known = {run.model for run in RUNS}
    models = set(config.models.split(",")) if config.models else known
    if unknown := models - known:
        told = f"no bars for {', '.join(sorted(unknown))}; there are for {', '.join(sorted(known))}"
        print(f"error: {told}", file=sys.stderr)
        return 2
    chosen = [run for run in RUNS if run.model in models and (config.data or run.data is None)]
    lines = []
    try:
        for run in track(chosen, "training", transient=True, disable=not sys.stderr.isatty()):
            lines += compare(run, train(run, config.data))
    except (RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console().print(table(lines))
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
