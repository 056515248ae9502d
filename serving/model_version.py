"""A served version of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of a model, as the management API describes it.

    Attributes:
        name: The model's name in URLs.
        version: The version's name in URLs.
        is_default: It answers when the URL names no version; None if that was not asked.
        workers: State of each worker.
        pids: Process of each worker, by the worker's id; -1 until it runs.
        min_workers: Number of workers that it should have.
        pending_requests: Requests in its queue, without those at the workers.
        settings: Effective values of the keys of model-config.yaml.
    """

    name: str
    version: str
    is_default: bool | None
    workers: tuple[str, ...]
    pids: Mapping[str, int]
    min_workers: int
    pending_requests: int
    settings: Mapping[str, Any]

    @classmethod
    def from_json(cls, described: Mapping[str, Any], is_default: bool | None) -> ModelVersion:
        """Convert the management API's description of a version."""
        workers, queue = described["workers"], described["jobQueueStatus"]
        queue_size = queue["remainingCapacity"] + queue["pendingRequests"]
        return cls(
            name=described["modelName"],
            version=described["modelVersion"],
            is_default=is_default,
            workers=tuple(worker["status"] for worker in workers),
            pids={worker["id"]: worker["pid"] for worker in workers},
            min_workers=described["minWorkers"],
            pending_requests=queue["pendingRequests"],
            settings={**described, "jobQueueSize": queue_size},
        )

    @property
    def ready_workers(self) -> int:
        """Number of workers that have loaded the model."""
        return self.workers.count("READY")

    @property
    def ready(self) -> bool:
        """Whether all its workers have loaded the model."""
        return self.ready_workers >= max(self.min_workers, 1)

    def largest_worker_bytes(self) -> int:
        """Return the resident memory of its largest worker; the worker is on this machine.

        Raises:
            psutil.NoSuchProcess: If a worker has died.
            ValueError: If a worker does not run yet, or there is none.
        """
        return max(psutil.Process(pid).memory_info().rss for pid in self.pids.values())

    def __str__(self) -> str:
        """Describe its workers: ``1/2 READY, 1 UNLOADING``."""
        others = Counter(state for state in self.workers if state != "READY")
        states = [f"{self.ready_workers}/{self.min_workers} READY"]
        return ", ".join(states + [f"{n} {state}" for state, n in others.items()])
