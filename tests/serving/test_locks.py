"""Locks on a run folder and on a model store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.rollout import RolloutError, changing
from serving.run_folder import claim, owner
from serving.settings import ROOT, ServeError


@contextmanager
def holding(statement: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that enters a context and stays in it; the block runs once it has."""
    script = f"from pathlib import Path\n{statement}:\n    print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_run_folder_of_a_live_process_names_its_owner_and_that_of_a_killed_one_is_free(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "recmar-1"
    statement = f"from serving.run_folder import claim\nwith claim(Path({str(folder)!r}))"
    with holding(statement) as process:
        assert owner(folder) == process.pid
        with pytest.raises(ServeError, match=rf"pid {process.pid}\)"), claim(folder):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert owner(folder) is None
        with claim(folder):
            assert owner(folder) == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_changes_a_model_store_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    statement = f"from serving.rollout import changing\nwith changing(Path({str(tmp_path)!r}))"
    with holding(statement) as process:
        with pytest.raises(RolloutError, match="another deploy or reload"), changing(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        with changing(tmp_path):
            assert list(tmp_path.iterdir()) == []
