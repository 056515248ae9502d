"""Measure services in turns; show the results as tables and plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import requests
from rich import box
from rich.table import Table
from tqdm import tqdm

from handlers.errors import UserError
from serving.load import Load, load
from serving.testing import numbers

CONNECTIONS = (1, 32, 128)
COMPARED = 32  # connections at which the targets hold
TOLERANCE = 1e-5
# Title, attribute of Load, decimals.
SHOWN = (
    ("requests/s", "requests_per_s", 0),
    ("p50, ms", "latency_p50_ms", 2),
    ("p99, ms", "latency_p99_ms", 2),
)


@dataclass(frozen=True)
class Timing:
    """Duration of the measurements.

    Attributes:
        seconds: Duration of a measurement.
        rounds: Measurements of each case; their median is reported.
        warm_up_s: Seconds of load on each service before it is measured, per number of rows.
    """

    seconds: int = 1
    rounds: int = 4
    warm_up_s: int = 3


@dataclass(frozen=True)
class Service:
    """A service under load: a column of the tables.

    Attributes:
        name: Name in the tables.
        url: URL that takes the requests.
        bodies: File of the request body by number of rows.
    """

    name: str
    url: str
    bodies: Mapping[int, Path]


@dataclass(frozen=True)
class Case:
    """A line of the tables: rows per request and number of connections."""

    rows: int
    connections: int


Results = dict[str, dict[Case, Load]]  # by name of the service


@dataclass(frozen=True)
class Target:
    """A figure and the bar that it has to reach.

    Attributes:
        what: Description of the figure.
        measured: Its value.
        bar: The bar; None for a figure that is only reported.
        at_least: True if the bar is a minimum, False if it is a maximum.
    """

    what: str
    measured: float
    bar: float | None
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Return True if the bar was reached or there is none."""
        if self.bar is None:
            return True
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar


def check_answers(services: Sequence[Service]) -> None:
    """Check that services answer the same request alike.

    Raises:
        UserError: If the numbers in their answers differ by more than TOLERANCE.
    """
    predictions = []
    for service in services:
        body = service.bodies[max(service.bodies)].read_bytes()
        headers = {"Content-Type": "application/json"}
        response = requests.post(service.url, data=body, headers=headers, timeout=30)
        if not response.ok:
            raise UserError(f"{service.name}: {response.status_code} {response.text}")
        predictions.append([value for _, value in numbers(response.json())])
    lengths = set(map(len, predictions))
    if len(lengths) > 1 or not np.allclose(predictions[0], predictions[1:], rtol=0, atol=TOLERANCE):
        raise UserError(f"{', '.join(service.name for service in services)}: answers differ")


def measure(services: Sequence[Service], timing: Timing) -> Results:
    """Measure each case of each service in turns.

    Args:
        services: Services whose bodies have the same numbers of rows.
        timing: Duration of the measurements.

    Returns:
        The medians over the rounds.

    Raises:
        UserError: If the load generator fails.
    """
    rows = tuple(services[0].bodies)
    cases = [Case(n, connections) for n in rows for connections in CONNECTIONS]
    warm_ups = [(service, n) for n in rows for service in services]
    turns = [(service, case) for case in cases for service in services] * timing.rounds
    loads: dict[tuple[str, Case], list[Load]] = {}
    total = len(warm_ups) * timing.warm_up_s + len(turns) * timing.seconds
    with tqdm(total=total, unit="s", disable=None, leave=False) as bar:
        for service, n in warm_ups:
            load(service.url, service.bodies[n], COMPARED, timing.warm_up_s)
            bar.update(timing.warm_up_s)
        for service, case in turns:
            body = service.bodies[case.rows]
            seen = load(service.url, body, case.connections, timing.seconds)
            loads.setdefault((service.name, case), []).append(seen)
            bar.update(timing.seconds)
    return {
        service.name: {case: median(loads[service.name, case]) for case in cases}
        for service in services
    }


def median(loads: Sequence[Load]) -> Load:
    """Return the medians of several loads, and the sum of their errors."""
    return Load(
        statistics.median(load.requests_per_s for load in loads),
        statistics.median(load.latency_p50_ms for load in loads),
        statistics.median(load.latency_p99_ms for load in loads),
        sum(load.errors for load in loads),
    )


def tables(results: Results) -> list[Table]:
    """Lay out the results as a table per figure, at most 80 columns wide."""
    shown = []
    for title, attribute, digits in SHOWN:
        table = Table("rows", "conns", title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for name in results:
            table.add_column(name.replace(" ", "\n"), justify="right")
        for case in next(iter(results.values())):
            cells = [getattr(loads[case], attribute) for loads in results.values()]
            table.add_row(
                str(case.rows), str(case.connections), *(f"{cell:,.{digits}f}" for cell in cells)
            )
        shown.append(table)
    return shown


def verdict(targets: Sequence[Target]) -> Table:
    """Lay out the targets, and which of them were missed."""
    table = Table(f"at {COMPARED} connections", "measured", "target", "", box=box.SIMPLE_HEAD)
    for target in targets:
        sign = ">=" if target.at_least else "<="
        table.add_row(
            target.what,
            f"{target.measured:.2f}",
            "" if target.bar is None else f"{sign} {target.bar:g}",
            "" if target.met else "missed",
        )
    return table


def plot(results: Results, path: Path) -> None:
    """Draw requests/s and p99 over the number of connections, one line per service."""
    rows = sorted({case.rows for loads in results.values() for case in loads})
    figure, axes = plt.subplots(
        len(rows),
        2,
        figsize=(10, 1 + 3 * len(rows)),
        sharex=True,
        layout="constrained",
        squeeze=False,
    )
    ticks = range(len(CONNECTIONS))
    for row, n in zip(axes, rows, strict=True):
        for axis, (label, attribute, _) in zip(row, (SHOWN[0], SHOWN[2]), strict=True):
            for name, loads in results.items():
                values = [getattr(loads[Case(n, count)], attribute) for count in CONNECTIONS]
                axis.plot(ticks, values, marker="o", label=name)
            axis.set(title=f"{label}, {n} row{'s' * (n > 1)} a request", yscale="log")
            axis.set_xticks(ticks, [str(count) for count in CONNECTIONS])
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("connections")
    axes[0][0].legend(fontsize="small")
    figure.savefig(path)
    plt.close(figure)
