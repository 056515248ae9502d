"""The report on a soak: a table, the problems, and a picture over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich import box
from rich.table import Table

from bench.soak_record import Record, SentRequest

WINDOWS = 60  # in the picture
MAX_MEMORY_GROWTH = 0.05
MIN_MINUTES = 5.0  # in less time, growth cannot be told from noise


def report(record: Record) -> tuple[Table, list[str]]:
    """Summarize a soak.

    Returns:
        The figures as a table, and the problems that make the soak a failure.
    """
    in_flight, others = record.lost()
    minutes = record.memory[-1][0] / 60
    table = Table("", "", show_header=False, box=box.SIMPLE_HEAD)
    table.add_row("minutes", f"{minutes:.1f}")
    table.add_row("requests", f"{len(record.requests):,}")
    for kind, name in (("switch", "versions switched"), ("kill", "workers killed")):
        done = [event for event in record.disturbances if event.kind == kind]
        longest = max((event.took_s for event in done), default=math.nan)
        table.add_row(name, f"{len(done)}, at most {longest:.1f} s each")
    table.add_row("lost in flight at killed workers", str(len(in_flight)))
    table.add_row("lost otherwise", str(len(others)))
    half = len(record.requests) // 2
    for name, requests in (
        ("p50, p99 in ms, first half", record.requests[:half]),
        ("p50, p99 in ms, second half", record.requests[half:]),
    ):
        table.add_row(name, f"{percentile(requests, 50):.1f}, {percentile(requests, 99):.1f}")
    megabytes = sum(record.memory[-1][1].values()) / 2**20
    table.add_row("memory at the end", f"{megabytes:,.0f} MB")
    growth = record.memory_growth() if minutes >= MIN_MINUTES else math.nan
    shown = f"not judged below {MIN_MINUTES:g} minutes" if math.isnan(growth) else f"{growth:+.1%}"
    table.add_row("memory growth after the warm-up", shown)
    problems = [f"{e.kind} {e.model}: {e.error}" for e in record.disturbances if e.error]
    errors = Counter(str(request.error) for request in others)
    problems += [error for error, _ in errors.most_common(5)]
    if growth > MAX_MEMORY_GROWTH:
        problems.append(
            f"memory: expected growth of at most {MAX_MEMORY_GROWTH:.0%}, got {growth:.1%}"
        )
    return table, problems


def percentile(requests: Sequence[SentRequest], percent: float) -> float:
    """Return a percentile of the latency of the answered requests in ms; NaN if there are none."""
    latencies = [request.latency_ms for request in requests if request.error is None]
    return float(np.percentile(latencies, percent)) if latencies else math.nan


def windows(record: Record) -> Iterator[tuple[float, list[SentRequest]]]:
    """Split the soak into windows of equal length; yield each middle in seconds, and requests."""
    end_s = max(request.at_s for request in record.requests) + 1e-9
    size_s = end_s / WINDOWS
    requests: list[list[SentRequest]] = [[] for _ in range(WINDOWS)]
    for request in record.requests:
        requests[int(request.at_s / size_s)].append(request)
    yield from (((i + 0.5) * size_s, window) for i, window in enumerate(requests))


def plot(record: Record, path: Path) -> None:
    """Draw latency, lost requests, memory and disturbances over time."""
    figure, (latency, lost, used) = plt.subplots(
        3, 1, figsize=(10, 9), sharex=True, layout="constrained"
    )
    middles, requests = zip(*windows(record), strict=True)
    minutes = [middle / 60 for middle in middles]
    for percent in (50, 99):
        latency.plot(minutes, [percentile(w, percent) for w in requests], label=f"p{percent}")
    latency.set(title="latency, ms", yscale="log")
    in_flight, others = (set(map(id, requests)) for requests in record.lost())
    width = minutes[0] * 2
    below = np.zeros(len(minutes))
    for label, which in (("in flight at a killed worker", in_flight), ("others", others)):
        heights = np.array([sum(id(request) in which for request in w) for w in requests], float)
        lost.bar(minutes, heights, width, bottom=below, label=label)
        below += heights
    lost.set(title="lost requests", ylim=(0, max(1, below.max() * 1.1)))
    times = [at_s / 60 for at_s, _ in record.memory]
    parts = ("Java", "workers", "sidecar")
    used.stackplot(
        times, *([m.get(p, 0) / 2**20 for _, m in record.memory] for p in parts), labels=parts
    )
    used.set(title="memory (PSS), MB", xlabel="minutes")
    for axis in (latency, lost, used):
        for kind, color in (("switch", "tab:green"), ("kill", "tab:red")):
            at = [event.at_s / 60 for event in record.disturbances if event.kind == kind]
            for i, minute in enumerate(at):
                axis.axvline(minute, color=color, alpha=0.4, label=None if i else kind)
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        axis.grid(alpha=0.3)
    figure.savefig(path)
    plt.close(figure)
