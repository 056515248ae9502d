"""The cores and the memory that this process may use, limited by its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# Measured and rounded up: a worker of xgb, and Java under many large requests.
WORKER_BYTES = 300_000_000
JAVA_BYTES = 1_600_000_000


@dataclass(frozen=True)
class Budget:
    """Available cores and memory.

    Attributes:
        cores: Whole cores, at least 1.
        memory_bytes: Free memory.
    """

    cores: int
    memory_bytes: int

    @classmethod
    def read(
        cls, process: Path = Path("/proc/self"), mount: Path = Path("/sys/fs/cgroup")
    ) -> Budget:
        """Read the limits of the machine and of every control group that contains the process.

        Args:
            process: Folder of the process in /proc.
            mount: Mount point of the control groups: version 1, version 2 or both.
        """
        cores = float(len(os.sched_getaffinity(0)))
        memory_bytes = float(psutil.virtual_memory().available)
        for folder in _groups(process / "cgroup", mount):
            cores = min(cores, _quota(folder))
            memory_bytes = min(memory_bytes, _free_bytes(folder))
        return cls(max(1, int(cores)), max(0, int(memory_bytes)))


def _groups(listed: Path, mount: Path) -> Iterator[Path]:
    """Yield the folders of a process's control groups and of the groups that contain them.

    Args:
        listed: The process's ``cgroup`` file.
        mount: Mount point of the control groups.
    """
    for line in listed.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one hierarchy for all controllers; next to version 1 it is in "unified".
        names = controllers.split(",") if controllers else ["", "unified"]
        parts = path.strip("/").split("/")
        for name in names:
            # In a container the path may be the host's, while the mount starts at the group itself.
            for depth in range(len(parts) + 1):
                folder = mount.joinpath(name, *parts[:depth])
                if folder.is_dir():
                    yield folder


def _quota(folder: Path) -> float:
    """Return the number of cores that a group may use; infinite without a limit."""
    if (limit := folder / "cpu.max").exists():
        quota, period = limit.read_text().split()
    elif (limit := folder / "cpu.cfs_quota_us").exists():
        quota, period = limit.read_text(), (folder / "cpu.cfs_period_us").read_text()
    else:
        return float("inf")
    return float("inf") if quota == "max" or int(quota) < 0 else int(quota) / int(period)


def _free_bytes(folder: Path) -> float:
    """Return the memory that a group may still take; infinite without a limit.

    Inactive file caches count as free: the kernel evicts them first.
    """
    for limit_file, used_file, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (folder / limit_file).exists():
            limit = (folder / limit_file).read_text().strip()
            if limit == "max":
                break
            used = int((folder / used_file).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            statistics = dict(line.split() for line in lines)
            return int(limit) - used + int(statistics.get(cache, 0))
    return float("inf")
