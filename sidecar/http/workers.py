"""Workers that do not answer, although TorchServe lists them as READY."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass

import psutil

from serving.model_version import ModelVersion

# What the command of a worker contains; a process id of another machine may be anything here.
WORKER_SCRIPT = "model_service_worker.py"
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
# Looks that are compared: the time between the first and the last must be longer than any batch.
LOOKS = 3
# A worker that did nothing while another of its model was scheduled so often has not been asked by
# chance: TorchServe gives batches to idle workers in turn.
BUSY_SWITCHES = 200


@dataclass(frozen=True)
class _Look:
    waiting: bool
    switches: dict[int, int]


class WorkerWatch:
    """What the workers of each version have done lately.

    It sends no requests: they would wait in the queue like any other, and count as traffic. The
    kernel tells how often a worker's main thread was scheduled: one that answers, even slowly, or
    that computes, is scheduled many times a second; one that hangs never is.
    """

    def __init__(self) -> None:
        self._looks: dict[str, deque[_Look]] = defaultdict(lambda: deque(maxlen=LOOKS))

    def look(self, version: ModelVersion) -> None:
        """Note what the workers of a version have done so far."""
        switches = {}
        for pid in version.pids.values():
            with suppress(psutil.Error, ValueError):
                switches[pid] = sum(_worker(pid).num_ctx_switches())
        self._looks[version.name].append(_Look(version.pending_requests > 0, switches))

    def silent(self, version: ModelVersion) -> list[str]:
        """Describe each worker of a version that does not answer."""
        hanging = self._hanging(version.name)
        found = []
        for worker, pid in version.pids.items():
            with suppress(psutil.Error, ValueError):
                if _worker(pid).status() in STOPPED:
                    found.append(f"worker {worker} (pid {pid}) is stopped")
                elif pid in hanging:
                    found.append(f"worker {worker} (pid {pid}) hangs while requests wait")
        return found

    def _hanging(self, model: str) -> set[int]:
        looks = self._looks[model]
        if len(looks) < LOOKS:
            return set()
        first, last = looks[0].switches, looks[-1].switches
        done = {pid: last[pid] - first[pid] for pid in first.keys() & last.keys()}
        waited = all(look.waiting for look in looks)
        if not waited and max(done.values(), default=0) < BUSY_SWITCHES:
            return set()
        return {pid for pid, switches in done.items() if switches == 0}


def _worker(pid: int) -> psutil.Process:
    # ValueError also if the worker has no process yet: its id is -1.
    process = psutil.Process(pid)
    if not any(WORKER_SCRIPT in argument for argument in process.cmdline()):
        raise ValueError(pid)
    return process
