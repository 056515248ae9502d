"""Checkpoints of a run in this process: what ``--resume`` continues from.

An unfinished run leaves a hidden folder beside its artifacts, with ``run.json``, which says what it
trained with, and a file for each of its training loops. It is removed when the run has succeeded.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.engine.worker import TrainingError, Worker

RUN_FILE = "run.json"
# Saving takes at most this share of the time: of short epochs, not every one is saved.
MAX_SAVING_SHARE = 0.05

logger = logging.getLogger(__name__)


def checkpoint_folder(artifacts: Path) -> Path:
    """Return the folder of a run's checkpoints, given that of its artifacts."""
    return artifacts.with_name(f".{artifacts.name}.checkpoint")


def unfinished_versions(folder: Path) -> list[str]:
    """List the versions of a model whose runs can be resumed, oldest first.

    Args:
        folder: The folder of all versions of the model.
    """
    paths = sorted(folder.glob(f".*.checkpoint/{RUN_FILE}"), key=lambda p: p.parent.stat().st_mtime)
    return [path.parent.name[1 : -len(".checkpoint")] for path in paths]


def version_to_resume(folder: Path, version: str) -> str:
    """Return the version of the run to continue.

    Args:
        folder: The folder of all versions of the model.
        version: The version that was asked for; empty for the latest one.

    Raises:
        TrainingError: If there is no such run.
    """
    known = unfinished_versions(folder)
    if not known or (version and version not in known):
        listed = f"; it has {', '.join(known)}" if known else ""
        of_version = f" of version {version}" if version else ""
        raise TrainingError(f"--resume: {folder} has no unfinished run{of_version}{listed}")
    if not version:
        logger.info("--resume: continues version %s, the latest unfinished one", known[-1])
    return version or known[-1]


def how_to_resume(folder: Path, version: str) -> str:
    """Return the end of a message about a run that was interrupted; empty without checkpoints."""
    can_resume = version in unfinished_versions(folder)
    return f"; to continue, add: --resume --version {version}" if can_resume else ""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Their folder, which the first checkpoint creates.
        flags: The flags that the result depends on, by name.
        resume: Continue the run that the folder holds.

    Attributes:
        folder: Their folder.
        flags: The flags as JSON.

    Raises:
        TrainingError: If that run had other flags.
    """

    def __init__(self, folder: Path, flags: Mapping[str, Any], *, resume: bool) -> None:
        self.folder, self._resume = folder, resume
        self._n_loops, self._n_saved = 0, 0
        self.flags = json.loads(json.dumps(flags, default=str))
        self._data_sha256 = ""
        path = folder / RUN_FILE
        if not path.exists():
            return
        if not resume:
            logger.warning(
                "%s: holds an unfinished run, which the first checkpoint of this one replaces; to "
                "continue it instead, stop now and add --resume",
                folder,
            )
            return
        try:
            self._before = json.loads(path.read_text())
            flags_before = self._before["flags"]
        except (ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
        changed = [
            f"--{name.replace('_', '-')} was {_shown(flags_before, name)}, "
            f"is {_shown(self.flags, name)}"
            for name in sorted({*flags_before, *self.flags})
            if flags_before.get(name) != self.flags.get(name)
        ]
        if changed:
            raise TrainingError(
                f"--resume: expected the flags of the unfinished run; {'; '.join(changed)}"
            )

    def check_data(self, sha256: str) -> None:
        """Note the data that the run trains on.

        Args:
            sha256: Hash of the data.

        Raises:
            TrainingError: If the run to continue was on other data.
        """
        self._data_sha256 = sha256
        if self._resume and self._before["data_sha256"] != sha256:
            raise TrainingError(
                "--resume: expected the rows of the unfinished run, got others; name the same "
                "data, or train without --resume"
            )

    def worker(self) -> Worker:
        """Return the worker for the next training loop of the run."""
        self._n_loops += 1
        return _SavingWorker(self, f"loop-{self._n_loops}.pt")

    def load(self, name: str) -> Any:
        """Read a file of the run to continue; None if there is none."""
        path = self.folder / name
        if not self._resume or not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise _unreadable(path, error) from error

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Write a file, whole or not at all."""
        if not self._n_saved and not self._resume:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / RUN_FILE).write_text(
                json.dumps({"flags": self.flags, "data_sha256": self._data_sha256})
            )
        self._n_saved += 1
        unfinished = self.folder / f"{name}.writing"
        try:
            torch.save(dict(state), unfinished)
            os.replace(unfinished, self.folder / name)
        finally:
            unfinished.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the checkpoints of a run that has succeeded."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _SavingWorker(Worker):
    """The only process that trains; it saves the state of one training loop."""

    def __init__(self, checkpoints: Checkpoints, name: str) -> None:
        self._checkpoints, self._name = checkpoints, name
        self._uses_cuda = checkpoints.flags.get("device") == "cuda"
        self._next_save = 0.0

    def saved(self) -> Any:
        state = self._checkpoints.load(self._name)
        if state is None:
            return None
        logger.info("resumed after %s", state["summary"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        return state

    def save(self, state: dict[str, Any]) -> None:
        started = time.perf_counter()
        if started < self._next_save:
            return
        random = {"rng": torch.get_rng_state(), "cuda_rng": None}
        if self._uses_cuda:
            random["cuda_rng"] = torch.cuda.get_rng_state()
        try:
            self._checkpoints.save(self._name, state | random)
        except (OSError, RuntimeError) as error:  # a full disk must not cost what was learned
            logger.warning("%s: no checkpoint was saved: %s", self._checkpoints.folder, error)
        ended = time.perf_counter()
        self._next_save = ended + (ended - started) / MAX_SAVING_SHARE


def _unreadable(path: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{path}: cannot be read: {error}; train without --resume")


def _shown(flags: Mapping[str, Any], name: str) -> str:
    value = flags.get(name)
    return "unknown" if name not in flags else json.dumps(value, ensure_ascii=False)
