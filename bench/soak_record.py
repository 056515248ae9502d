"""What a soak records: requests, disturbances and memory over time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

# A killed worker loses the batch that it works on, and nothing else.
LOST_WITHIN_S = 5.0
# Processes grow at first: Java's heap, the allocators' pools.
WARM_UP_SHARE = 1 / 3


@dataclass(frozen=True)
class SentRequest:
    """A request and how it ended.

    Attributes:
        at_s: Seconds from the start of the soak to the request.
        latency_ms: Time until the answer or the error.
        model: Model that answers it.
        error: None if it was answered with 200.
    """

    at_s: float
    latency_ms: float
    model: str
    error: str | None


@dataclass(frozen=True)
class Disturbance:
    """A version switch or a killed worker.

    Attributes:
        at_s: Seconds from the start of the soak to the disturbance.
        kind: ``switch`` or ``kill``.
        model: Model that it affects.
        took_s: Time until the new version served, or all workers were READY again.
        error: None if it went well.
    """

    at_s: float
    kind: str
    model: str
    took_s: float
    error: str | None


@dataclass
class Record:
    """Everything that a soak observed.

    Attributes:
        requests: In the order of their ends.
        disturbances: In order.
        memory: Seconds since the start, and the PSS in bytes of each part of the instance.
        started: Start of the soak on the monotonic clock.
    """

    requests: list[SentRequest] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    def lost(self) -> tuple[list[SentRequest], list[SentRequest]]:
        """Return the requests that failed: those in flight at a killed worker, and the others."""
        in_flight: list[SentRequest] = []
        others: list[SentRequest] = []
        kills = [event for event in self.disturbances if event.kind == "kill"]
        for request in self.requests:
            if request.error is None:
                continue
            end_s = request.at_s + request.latency_ms / 1e3
            excused = any(
                request.model == kill.model
                and request.at_s <= kill.at_s + LOST_WITHIN_S
                and end_s >= kill.at_s
                for kill in kills
            )
            (in_flight if excused else others).append(request)
        return in_flight, others

    def memory_growth(self) -> float:
        """Return by which share memory grew from the first to the second half after the warm-up.

        The medians of the halves are compared: during a switch two versions are loaded.
        """
        total = np.array([(at_s, sum(parts.values())) for at_s, parts in self.memory])
        after = total[total[:, 0] >= total[-1, 0] * WARM_UP_SHARE][:, 1]
        first, second = np.array_split(after, 2)
        return float(np.median(second) / np.median(first) - 1)
