"""The process that runs a training loop, and the flags that choose it."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from handlers.errors import UserError

# Loss of a batch, given the numbers of its rows: int64 [B] -> float32 [].
Step = Callable[[Tensor], Tensor]


# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class TrainingError(UserError):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class EngineConfig:
    """Where training runs: in this process, or in several.

    Attributes:
        device: cpu; or cuda, for a GPU.
        resume: Continue an unfinished run after its last checkpoint; by default the latest one of
            the model, else that of --version. The other flags and the data must be the same.
        engine: local; or ray, for the cluster at RAY_ADDRESS or, if that is not set, a cluster on
            this machine.
        num_workers: Processes that train, with ray.
        checkpoint_dir: Folder or s3:// URL for the checkpoints of ray, reachable from every machine
            of the cluster; by default a temporary folder, which is enough for one machine.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    resume: bool = False
    engine: Literal["local", "ray"] = "local"
    num_workers: int = 2
    checkpoint_dir: str = ""

    @property
    def n_workers(self) -> int:
        """Number of processes that train."""
        return 1 if self.engine == "local" else self.num_workers


def seed_everything(seed: int) -> None:
    """Make a run repeatable; a single thread fixes the order, and so the rounding, of sums."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    # Filling memory that is overwritten anyway finds bugs, but takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MB, such as gradients, for the next step.

    By default it returns them to the kernel; getting their pages again takes a quarter of a step.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)


class Worker:
    """The only process that trains; :mod:`training.engine.ray` has one of several.

    Attributes:
        rank: Its number, from 0.
        size: Number of workers.
    """

    rank, size = 0, 1

    def saved(self) -> Any:
        """Return the last state that a worker before this one saved; None if there is none."""
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Save the state of the first worker; every worker must call it.

        Args:
            state: Anything that can be pickled. ``summary`` describes the progress in words.
        """

    def wrap(self, network: nn.Module, step: Step) -> Step:
        """Return a step whose gradients are the mean over all workers."""
        return step

    def order(self, n_rows: int, seed: int, epoch: int) -> Tensor:
        """Draw the row numbers of this worker in an epoch, int64 [n_rows // size]."""
        return torch.randperm(n_rows)

    def total(self, value: Tensor) -> Tensor:
        """Sum a value over all workers."""
        return value
