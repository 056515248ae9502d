"""Search the settings of a served model: workers, threads, batch size and batch delay.

From the present setting the search changes one value at a time, continues in a direction while
requests/s grow, and ends when no step helps. What a setting achieves is measured by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import yaml

from handlers.errors import UserError
from serving.archive_file import CONFIG_FILE
from serving.budget import JAVA_BYTES, Budget
from serving.load import Load

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
DELAYS_MS = (1, 2, 5, 10)
NOISE_SHARE = 0.05  # smaller differences are noise


@dataclass(frozen=True)
class Setting:
    """The tuned part of a ``model-config.yaml``.

    Attributes:
        workers: ``minWorkers`` and ``maxWorkers``.
        batch_size: ``batchSize``.
        delay_ms: ``maxBatchDelay``.
        threads: ``threads`` in the section ``handler``; None for a model that has no such line.
    """

    workers: int
    batch_size: int
    delay_ms: int
    threads: int | None

    @classmethod
    def read(cls, text: str) -> Setting:
        """Read the setting from the text of the file.

        Raises:
            UserError: If a key is missing.
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
            raise UserError(f"{CONFIG_FILE}: expected {error}, got no such key") from error

    def write(self, text: str) -> str:
        """Return the text of the file with this setting and every other character unchanged.

        Raises:
            UserError: If a key has no line of its own.
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
            raise UserError(f"{CONFIG_FILE}: expected a line for each of {keys}")
        return text

    def __str__(self) -> str:
        """Return the setting with the names that the file uses."""
        threads = "" if self.threads is None else f"threads {self.threads}, "
        return (
            f"workers {self.workers}, {threads}batchSize {self.batch_size}, "
            f"maxBatchDelay {self.delay_ms}"
        )


@dataclass(frozen=True)
class Measurement:
    """A setting and its performance.

    Attributes:
        setting: The setting.
        load: Throughput, latency and errors under load.
        worker_bytes: Resident memory of the largest worker.
    """

    setting: Setting
    load: Load
    worker_bytes: int

    def __str__(self) -> str:
        """Return the setting, its requests/s and its p99."""
        speed, p99_ms = self.load.requests_per_s, self.load.latency_p99_ms
        return f"{self.setting}: {speed:,.0f} requests/s, p99 {p99_ms:.2f} ms"


Measure = Callable[[Setting], Awaitable[Measurement]]


async def climb(present: Setting, budget: Budget, measure: Measure) -> None:
    """Measure settings, starting with the present one, until no step raises requests/s.

    Args:
        present: Starting point; measured even if it exceeds the budget.
        budget: Limits of every other setting.
        measure: Measures a setting; it must remember settings that it has measured.
    """
    first = await measure(present)
    memory_for_workers = budget.memory_bytes - JAVA_BYTES
    max_workers = max(1, min(budget.cores, int(memory_for_workers / first.worker_bytes)))
    start = replace(present, workers=min(present.workers, max_workers))
    best, before = await measure(fitting(start, budget.cores)), None
    while best is not before:
        before = best
        for knob, up in product(("workers", "batch_size", "delay_ms", "threads"), (True, False)):
            while following := step(best.setting, knob, up, budget.cores):
                if following.workers > max_workers:
                    break
                measured = await measure(following)
                if not _is_faster(measured.load, best.load):
                    break
                best = measured


def _is_faster(load: Load, other: Load) -> bool:
    """Compare requests/s; smaller differences than NOISE_SHARE do not count."""
    if load.errors or other.errors:
        return not load.errors
    return load.requests_per_s > (1 + NOISE_SHARE) * other.requests_per_s


def step(setting: Setting, knob: str, up: bool, cores: int) -> Setting | None:
    """Return the setting with the next value of one knob, or None if there is no further value.

    More threads make room by fewer workers, and more workers by fewer threads.
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
    """Reduce workers x threads to at most the number of cores.

    Args:
        setting: The setting.
        cores: The limit.
        keep: Field to leave as it is if possible: ``threads``, or else the workers.
    """
    workers, threads = min(setting.workers, cores), min(setting.threads or 1, cores)
    if keep == "threads":
        workers = min(workers, cores // threads)
    else:
        threads = min(threads, cores // workers)
    return replace(setting, workers=workers, threads=setting.threads and threads)


def pareto_front(measured: Sequence[Measurement]) -> list[Measurement]:
    """Return the settings that no other one beats in both requests/s and p99, fastest first."""
    sound = [one for one in measured if not one.load.errors]
    by_speed = sorted(sound, key=lambda one: (-one.load.requests_per_s, one.load.latency_p99_ms))
    front: list[Measurement] = []
    for one in by_speed:
        if not front or one.load.latency_p99_ms < front[-1].load.latency_p99_ms:
            front.append(one)
    return front


def choose(measured: Sequence[Measurement], cores: int) -> Measurement:
    """Return the setting with the lowest p99 among those within noise of the most requests/s.

    The first one, the present setting, is replaced only if another is better by more than noise.

    Raises:
        UserError: If no setting within the cores answered every request.
    """
    sound = [
        one
        for one in measured
        if not one.load.errors and fitting(one.setting, cores) == one.setting
    ]
    if not sound:
        raise UserError("no setting answered every request in time; try fewer connections")
    least = (1 - NOISE_SHARE) * max(one.load.requests_per_s for one in sound)
    fastest = [one for one in sound if one.load.requests_per_s >= least]
    best = min(fastest, key=lambda one: one.load.latency_p99_ms)
    present = measured[0]
    is_good = present.load.latency_p99_ms <= (1 + NOISE_SHARE) * best.load.latency_p99_ms
    return present if present in fastest and is_good else best
