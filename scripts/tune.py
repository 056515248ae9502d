"""Measure a model's settings on this machine and keep the best: ``python -m scripts.tune``.

A TorchServe of its own, on free ports, loads the archive with one setting after the other;
``serving/settings_search.py`` decides which ones.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path

import orjson
import psutil
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from archive import catalog
from archive.package import MODEL_STORE, with_config
from handlers import logs
from handlers.errors import UserError
from serving.archive_file import ArchiveFile
from serving.budget import Budget
from serving.load import generator
from serving.replay import read_requests
from serving.rollout import RolloutError
from serving.settings_search import Measurement, Setting, choose, climb, pareto_front
from serving.trial import Traffic, running_trial

MAX_BUSY_PERCENT = 20.0
NOTE = "# tuned"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure a model's settings within this machine's cores and memory, and save the best.

    Attributes:
        model: Name of the model.
        requests: JSON lines file of request bodies, sent in turn; by default a request of golden
            rows.
        rows: Golden rows per request.
        connections: Concurrent callers; each sends its next request when the last is answered.
        seconds: Duration of a measurement.
        store: Folder of the archives.
        dry_run: Print the measurements and change nothing.
    """

    model: str
    requests: Path | None = None
    rows: int = 1
    connections: int = 32
    seconds: int = 5
    store: Path = MODEL_STORE
    dry_run: bool = False


async def sweep(config: Config, mar: Path, text: str, measured: dict[Setting, Measurement]) -> None:
    """Measure an archive with the settings that the search tries.

    Args:
        config: The load.
        mar: The archive.
        text: Text of the present ``model-config.yaml``.
        measured: Receives each measurement as soon as it is done.

    Raises:
        UserError: If the archive, the requests, TorchServe or the load generator fails.
    """
    archive = ArchiveFile.read(mar)
    if config.requests:
        source, bodies = str(config.requests), read_requests(config.requests)
    else:
        rows = list(islice(cycle(archive.golden.rows), config.rows))
        source, bodies = "golden rows", [orjson.dumps({"data": rows})]
    traffic = Traffic(source, bodies, config.connections, config.seconds)
    with tempfile.TemporaryDirectory(prefix="recmar-tune-") as scratch:
        async with running_trial(Path(scratch), traffic) as trial:

            async def measure(setting: Setting) -> Measurement:
                if setting in measured:
                    return measured[setting]
                bar.set_description_str(str(setting))
                copy = trial.store / mar.name
                with_config(mar, setting.write(text), copy)
                try:
                    seen, worker_bytes = await trial.measure(copy, archive.version)
                except RolloutError as error:
                    raise UserError(f"{mar.stem} with {setting}: {error}") from error
                bar.update()
                measured[setting] = Measurement(setting, seen, worker_bytes)
                return measured[setting]

            progress = "{n} measured in {elapsed}, now {desc}"
            with tqdm(bar_format=progress, disable=None, leave=False) as bar:
                await climb(Setting.read(text), Budget.read(), measure)


def table(measured: Sequence[Measurement], chosen: Measurement) -> Table:
    """Lay out the measurements, fastest first, at most 80 columns wide."""
    front = pareto_front(measured)
    shown = Table(box=box.SIMPLE_HEAD, caption="front: no other is faster at a lower p99")
    for name in ("workers\nx threads", "batch", "delay\nms", "requests/s", "p50 ms", "p99 ms"):
        shown.add_column(name, justify="right")
    for name in ("front", ""):
        shown.add_column(name)
    for one in sorted(measured, key=lambda one: -one.load.requests_per_s):
        setting, seen = one.setting, one.load
        notes = [
            "present" if one is measured[0] else "",
            "chosen" if one is chosen else "",
            f"{seen.errors:,} errors" if seen.errors else "",
        ]
        shown.add_row(
            f"{setting.workers} x {setting.threads or 1}",
            str(setting.batch_size),
            str(setting.delay_ms),
            f"{seen.requests_per_s:,.0f}",
            f"{seen.latency_p50_ms:.2f}",
            f"{seen.latency_p99_ms:.2f}",
            "*" if one in front else "",
            ", ".join(filter(None, notes)),
        )
    return shown


def annotated(text: str, config: Config, present: Measurement, chosen: Measurement) -> str:
    """Return the file's text with the chosen setting and its figures at the head.

    The figures of an earlier run are removed.
    """
    source = config.requests.name if config.requests else f"rows a request: {config.rows}"
    today, cores = datetime.now(UTC).date(), Budget.read().cores
    notes = [
        f"{today} on {cores} cores with {config.connections} connections, {source}",
        f"to {chosen}",
    ]
    if chosen is not present:
        notes.append(f"from {present}")
    lines = [line for line in text.splitlines() if not line.startswith(NOTE)]
    return chosen.setting.write("\n".join([*(f"{NOTE} {note}" for note in notes), *lines, ""]))


def tune(config: Config) -> int:
    """Measure, print the table and write the chosen setting.

    Returns:
        The exit status: 0, or 130 after an interruption.

    Raises:
        UserError: If a flag is out of range, the model is unknown, or no setting is sound.
    """
    path = catalog.get(config.model).config_path
    for flag in ("rows", "connections", "seconds"):
        if getattr(config, flag) < 1:
            raise UserError(f"--{flag} {getattr(config, flag)}: expected 1 or more")
    if generator() != "wrk":
        logger.warning("the load comes from %s", generator())
    if (busy := psutil.cpu_percent(interval=1)) > MAX_BUSY_PERCENT:
        logger.warning("other programs use %.0f %% of the machine: expect noise", busy)
    text = path.read_text(encoding="utf-8")
    by_setting: dict[Setting, Measurement] = {}
    interrupted = False
    try:
        asyncio.run(sweep(config, config.store / f"{config.model}.mar", text, by_setting))
    except KeyboardInterrupt:
        interrupted = True
    measured = list(by_setting.values())
    if measured:
        chosen = choose(measured, Budget.read().cores)
        Console().print(table(measured, chosen))
    shown = path.relative_to(catalog.ROOT)
    if interrupted or config.dry_run:
        logger.info("%s%s is unchanged", "interrupted: " if interrupted else "", shown)
        return 130 if interrupted else 0
    path.write_text(annotated(text, config, measured[0], chosen), encoding="utf-8")
    print(f"{shown}: {chosen.setting}")
    print("next: check whether its other comments still hold")
    print(f"      run make archive MODEL={config.model}, and start the server again")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    config = tyro.cli(Config, prog="python -m scripts.tune", args=argv)
    logs.to_stderr()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        return tune(config)
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:  # before the first measurement
        return 130


if __name__ == "__main__":
    sys.exit(main())
