"""The memory of workers on this machine, before and after a version is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import psutil

from serving.budget import WORKER_BYTES, Budget
from serving.model_version import ModelVersion
from serving.rollout import RolloutError

# More than this times the memory of the old version's workers is worth a warning.
SUSPICIOUS_RATIO = 2.0

logger = logging.getLogger(__name__)


def largest_worker(served: ModelVersion | None) -> int:
    """Return the resident memory of a version's largest worker in bytes; 0 if it is not known."""
    try:
        return served.largest_worker_bytes() if served else 0
    except (psutil.NoSuchProcess, ValueError):
        return 0


def check_room(n_workers: int, old_bytes: int) -> None:
    """Check that further workers will fit into the memory.

    Args:
        n_workers: Number of workers to be started.
        old_bytes: Memory of a worker of the old version; 0 if it is not known.

    Raises:
        RolloutError: If they may not.
    """
    needed, free = n_workers * max(WORKER_BYTES, old_bytes), Budget.read().memory_bytes
    if needed > free:
        raise RolloutError(
            f"memory: {n_workers} workers may take {needed / 1e6:,.0f} MB next to what runs, "
            f"{free / 1e6:,.0f} MB are free; stop something else, or lower minWorkers"
        )


def check_use(model: str, worker_bytes: Sequence[int]) -> None:
    """Check the memory that a version's workers take, now that they have answered.

    Args:
        model: Model and version, for the messages.
        worker_bytes: Memory of a worker of the old version, if there is one, and of the new one; 0
            if it is not known.

    Raises:
        RolloutError: If so little is left that a worker that died could not be replaced.
    """
    *old, new_bytes = worker_bytes
    old_bytes, free = sum(old), Budget.read().memory_bytes
    if new_bytes > free:
        raise RolloutError(
            f"memory: a worker of {model} takes {new_bytes / 1e6:,.0f} MB, and only "
            f"{free / 1e6:,.0f} MB are free: too little to start one again"
        )
    if old_bytes and new_bytes > SUSPICIOUS_RATIO * old_bytes:
        logger.warning(
            "memory: a worker of %s takes %s MB, %.1f times as much as one of the old version",
            model,
            f"{new_bytes / 1e6:,.0f}",
            new_bytes / old_bytes,
        )
