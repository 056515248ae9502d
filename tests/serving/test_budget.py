"""The budget of a machine under control groups."""

from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from serving.budget import Budget

GB = 10**9


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    memory = type("Memory", (), {"available": 64 * GB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def read(root: Path, groups: str, files: Mapping[str, str]) -> Budget:
    process, mount = root / "proc", root / "cgroup"
    process.mkdir()
    (process / "cgroup").write_text(groups)
    for name, text in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Budget.read(process, mount)


def test_without_limits_the_budget_is_the_whole_machine(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000\n", "memory.max": "max\n"}
    assert read(tmp_path, "0::/\n", files) == Budget(16, 64 * GB)


def test_limits_of_version_2_count_at_every_level(tmp_path: Path) -> None:
    files = {
        "pods/cpu.max": "450000 100000\n",
        "pods/memory.max": "max\n",
        "pods/one/cpu.max": "max 100000\n",
        "pods/one/memory.max": f"{8 * GB}\n",
        "pods/one/memory.current": f"{3 * GB}\n",
        "pods/one/memory.stat": f"anon {2 * GB}\ninactive_file {1 * GB}\n",
    }
    assert read(tmp_path, "0::/pods/one\n", files) == Budget(4, 6 * GB)


def test_limits_of_version_1_count(tmp_path: Path) -> None:
    files = {
        "cpu/job/cpu.cfs_quota_us": "150000\n",
        "cpu/job/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/job/memory.limit_in_bytes": f"{4 * GB}\n",
        "memory/job/memory.usage_in_bytes": f"{1 * GB}\n",
        "memory/job/memory.stat": "total_inactive_file 0\n",
    }
    groups = "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n"
    assert read(tmp_path, groups, files) == Budget(1, 3 * GB)


def test_a_container_that_sees_the_path_of_its_host_finds_its_own_limits(tmp_path: Path) -> None:
    files = {"cpu.max": "200000 100000\n", "memory.max": "max\n"}
    assert read(tmp_path, "0::/kubepods/pod7\n", files) == Budget(2, 64 * GB)


def test_a_quota_below_one_core_counts_as_one_core(tmp_path: Path) -> None:
    assert read(tmp_path, "0::/\n", {"cpu.max": "20000 100000\n"}).cores == 1
