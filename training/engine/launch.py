"""Run a training loop where ``--engine`` says: in this process, or on Ray.

Nothing else imports :mod:`training.engine.ray`, since Ray is an optional dependency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from training.data.sources import DataSet
from training.engine.checkpoints import Checkpoints
from training.engine.worker import EngineConfig, TrainingError, Worker

Result = TypeVar("Result")

_checkpoints: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


@contextmanager
def running_engine(config: EngineConfig) -> Iterator[None]:
    """Keep the engine ready while the block runs: a Ray cluster, or nothing.

    Raises:
        TrainingError: If Ray is not installed, or there is no cluster of the right size.
    """
    if config.engine == "local":
        yield
        return
    try:
        from training.engine import ray as on_ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise TrainingError(
            f"--engine {config.engine}: expected Ray to be installed; run: "
            ".venv/bin/pip install -c constraints.txt '.[distributed]'"
        ) from None
    with on_ray.cluster(config):
        yield


@contextmanager
def saving_to(checkpoints: Checkpoints) -> Iterator[None]:
    """Save what the loops in the block have learned, and remove it when the block succeeds."""
    token = _checkpoints.set(checkpoints)
    try:
        yield
        checkpoints.remove()
    finally:
        _checkpoints.reset(token)


def check_data(sha256: str) -> None:
    """Note the data of the run.

    Args:
        sha256: Hash of the data.

    Raises:
        TrainingError: If the run to continue was on other data.
    """
    if checkpoints := _checkpoints.get():
        checkpoints.check_data(sha256)


def run_loop(
    library: Literal["torch", "xgboost"],
    loop: Callable[[Any, Worker], Result],
    config: EngineConfig,
    jobs: Sequence[Any],
) -> Result:
    """Run a training loop in every worker.

    Args:
        library: The library that carries messages between workers.
        loop: Called with a worker's job and the worker.
        config: The engine, and its number of workers.
        jobs: One job for each worker, or a single one for all.

    Returns:
        The first worker's result.

    Raises:
        TrainingError: If a loop raises it, or workers died too often.
    """
    if config.engine == "local":
        return run_here(loop, jobs[0])
    from training.engine import ray as on_ray

    return on_ray.run(library, loop, config, jobs)


def run_here(loop: Callable[[Any, Worker], Result], job: Any) -> Result:
    """Run a training loop in this process; its worker saves checkpoints if the run has any."""
    checkpoints = _checkpoints.get()
    return loop(job, checkpoints.worker() if checkpoints else Worker())


def read_by_engine(data: DataSet, config: EngineConfig) -> DataSet:
    """Return the same data, read by the machines of the engine."""
    if config.engine == "local":
        return data
    from training.engine import ray as on_ray

    return on_ray.read_in_shards(data, config)
