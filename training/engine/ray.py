"""Train in several processes, on one machine or many, with Ray: ``--engine ray``.

The script itself runs where it was started: it checks, encodes, reports and writes the artifacts.
The cluster does two things: it reads the files of the data, several at a time, and runs the loop
that fits the model in ``--num-workers`` processes. When one of these dies, all of them go on from
the last checkpoint, and end with the weights that they would have had.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from ray import cloudpickle as pickle  # unlike pickle, it takes what a script defines
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.xgboost import XGBoostTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import handlers
import training
from training.data.sources import DataSet, Source
from training.engine.worker import EngineConfig, Step, TrainingError, Worker, seed_everything

TRAINERS = {
    "torch": partial(TorchTrainer, torch_config=TorchConfig(backend="gloo")),
    "xgboost": XGBoostTrainer,
}
MAX_FAILURES = 3  # dead workers in one run; more are no accident
CHECKPOINT_FILE = "state"
BATCHES_AHEAD = 16  # most batches of one file that wait to be used

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@contextmanager
def cluster(config: EngineConfig) -> Iterator[None]:
    """Connect to the cluster at ``RAY_ADDRESS`` or, if that is not set, run one on this machine.

    Raises:
        TrainingError: If the cluster cannot be reached, or is too small.
    """
    if config.num_workers < 1:
        raise TrainingError(f"--num-workers {config.num_workers}: expected 1 or more")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # Ray warns of handled ones, too
    # Ray collects checkpoints this often, and workers wait for it: at the default of 2 s, every
    # epoch would take that long.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    with tempfile.TemporaryDirectory(prefix="recmar-", ignore_cleanup_errors=True) as scratch:
        if address := os.environ.get("RAY_ADDRESS"):
            # The machines of the cluster need the packages installed here, but no checkout.
            options: dict[str, Any] = {}
            code = {"py_modules": [handlers, training]}
        else:
            # Without a token, Ray makes one and leaves it in the home folder.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            options = {"num_cpus": config.num_workers, "_temp_dir": scratch}
            code = {}
        here = Path.cwd()

        def prepare() -> None:  # nested: a worker that calls it cannot import this module yet
            logging.getLogger("ray").setLevel(logging.ERROR)
            with suppress(OSError):
                os.chdir(here)  # so that relative paths work in a shared folder

        hook = {"worker_process_setup_hook": prepare}
        try:
            ray.init(logging_level=logging.ERROR, runtime_env={**hook, **code}, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = f"RAY_ADDRESS={address}" if address else "--engine ray"
            raise TrainingError(f"{where}: {error}") from error
        try:
            n_cpus = int(ray.cluster_resources().get("CPU", 0))
            if n_cpus < config.num_workers:
                raise TrainingError(
                    f"--num-workers {config.num_workers}: expected at most as many as the CPUs of "
                    f"the cluster at {address}, {n_cpus}"
                )
            yield
        finally:
            ray.shutdown()


class _RayWorker(Worker):
    """One of several processes, which share every batch, or the rows."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def saved(self) -> Any:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            state = pickle.loads((Path(folder) / CHECKPOINT_FILE).read_bytes())
        logger.warning("a worker died; all go on after %s", state["summary"])
        return state

    def save(self, state: dict[str, Any]) -> None:
        logger.info(state["summary"])
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                (Path(folder) / CHECKPOINT_FILE).write_bytes(pickle.dumps(state))
            checkpoint = ray.train.Checkpoint(folder) if self.rank == 0 else None
            ray.train.report({}, checkpoint=checkpoint)

    def wrap(self, network: nn.Module, step: Step) -> Step:
        wrapped: Step = DistributedDataParallel(_Step(network, step), forward_sync_buffers=False)
        return wrapped

    def order(self, n_rows: int, seed: int, epoch: int) -> Tensor:
        # Each epoch has its own seeds, so that one after a checkpoint repeats exactly.
        _seed(seed, epoch)
        order = torch.randperm(n_rows)[: n_rows // self.size * self.size][self.rank :: self.size]
        _seed(seed, epoch, self.rank)
        return order

    def total(self, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total


def _seed(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class _Step(nn.Module):
    """A step as a module: DistributedDataParallel wraps the module that owns the parameters."""

    def __init__(self, network: nn.Module, step: Step) -> None:
        super().__init__()
        self.network, self.step = network, step

    def forward(self, index: Tensor) -> Tensor:
        """Compute the loss of the rows with these numbers, int64 [B] -> float32 []."""
        return self.step(index)


def run(
    library: Literal["torch", "xgboost"],
    loop: Callable[[Any, Worker], Result],
    config: EngineConfig,
    jobs: Sequence[Any],
) -> Result:
    """Run a training loop in every worker.

    Args:
        library: The library that carries messages between workers.
        loop: Called with a worker's job and the worker.
        config: The number of workers, and the place of their checkpoints.
        jobs: One job for each worker, or a single one for all.

    Returns:
        The first worker's result.

    Raises:
        TrainingError: If a loop raises it, or workers died too often.
    """
    # As bytes: arrays that Ray passes share memory and are read-only.
    refs = [ray.put(pickle.dumps((loop, job))) for job in jobs]

    def work() -> bytes:
        worker = _RayWorker()
        # Log this project's messages only, and only once.
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("training").setLevel(logging.ERROR if worker.rank else logging.INFO)
        seed_everything(0)  # for the single thread; the loops have seeds of their own
        loop, job = pickle.loads(ray.get(refs[worker.rank % len(refs)]))
        try:
            outcome: Result | TrainingError = loop(job, worker)
        except TrainingError as error:  # Ray would retry a worker that raises
            outcome = error
        payload: bytes = pickle.dumps(outcome)  # Ray refuses to return tensors
        return payload

    with tempfile.TemporaryDirectory(prefix="recmar-") as scratch:
        trainer = TRAINERS[library](
            work,
            scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers),
            run_config=ray.train.RunConfig(
                storage_path=config.checkpoint_dir or scratch,
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
        )
        handler_before = signal.getsignal(signal.SIGINT)
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(f"--engine ray: {error}") from error
        except SystemExit:  # raised by Ray on Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, handler_before)
        with suppress(OSError):  # a leftover checkpoint must not cost the trained model
            result.filesystem.delete_dir(result.path)
    outcome: Result | TrainingError = pickle.loads(result.return_value)
    if isinstance(outcome, TrainingError):
        raise outcome
    return outcome


def read_in_shards(data: DataSet, config: EngineConfig) -> DataSet:
    """Return the same data, with sources that the cluster reads, one for each worker at a time."""
    tables = {}
    for split, table in data.tables.items():
        sources = [_RemoteSource(source) for source in table]
        for i, source in enumerate(sources):
            source.ahead = sources[i : i + config.num_workers]
        tables[split] = sources
    return replace(data, tables=tables)


class _RemoteSource:
    """A source that another process reads.

    Attributes:
        ahead: Sources to start when this one is used: itself, and the next ones.
    """

    def __init__(self, source: Source) -> None:
        self.ahead: Sequence[_RemoteSource] = ()
        self._source = source
        self._streams: dict[tuple[str, ...], Any] = {}
        self.name, self.first_row, self.ordered = source.name, source.first_row, source.ordered
        self.columns, self.sha256 = source.columns, source.sha256

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Stream the rows."""
        read = tuple(columns)
        for source in self.ahead:
            source.start(read)
        try:
            for batch in self._streams.pop(read):
                yield ray.get(batch)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OSError(error) from error

    def start(self, columns: tuple[str, ...]) -> None:
        """Start to read the rows, unless that has begun."""
        if columns not in self._streams:
            self._streams[columns] = (
                ray.remote(_read)
                .options(
                    num_returns="streaming",
                    max_retries=0,
                    _generator_backpressure_num_objects=BATCHES_AHEAD,
                )
                .remote(self._source, columns)
            )


def _read(source: Source, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    for batch in source.batches(columns):  # noqa: UP028 - Ray calls send(), which only a generator has
        yield batch
