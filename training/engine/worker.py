"""The process that trains: here the only one; :mod:`training.engine.ray` has one of several."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from handlers.errors import UserError

Step = Callable[[Tensor], Tensor]


class TrainingError(UserError):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class EngineConfig:
    """What trains: this process, or several.

    Attributes:
        engine: local; or ray, for the cluster of RAY_ADDRESS and without that for one of this
            machine alone.
        num_workers: Processes that train, with ray.
        checkpoint_dir: Folder or s3:// URL that all machines of the cluster see, for checkpoints
            while ray trains; by default a temporary folder, which is enough for one machine.
    """

    engine: Literal["local", "ray"] = "local"
    num_workers: int = 2
    checkpoint_dir: str = ""

    @property
    def n_workers(self) -> int:
        """Number of processes that train."""
        return 1 if self.engine == "local" else self.num_workers


def seed_everything(seed: int) -> None:
    """Make a run repeatable: one thread, since sums in another order differ in the last bit."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


class Worker:
    """The process that trains, here the only one; :mod:`training.engine.ray` has one of several.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank, size = 0, 1

    def saved(self) -> Any:
        """What was saved last, by the processes before these; None at first."""
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Save how far the first worker has come, in words as ``said``; all must call it."""

    def wrap(self, network: nn.Module, step: Step) -> Step:
        """A step whose gradients are the mean over all workers."""
        return step

    def order(self, n_rows: int, seed: int, epoch: int) -> Tensor:
        """Numbers of the rows that are this worker's in an epoch, int64 [n_rows // size]."""
        return torch.randperm(n_rows)

    def total(self, value: Tensor) -> Tensor:
        """The sum over all workers."""
        return value
