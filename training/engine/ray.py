"""Training by several processes, of one machine or many, on Ray: what ``--engine ray`` adds.

The script runs where it was started, as ever: it checks, encodes, reports and writes the artifacts.
Two things it leaves to the cluster: the files of its data are read there, several at a time, and
the loop that fits the model runs in ``--num-workers`` processes. When one of them dies, all go on
from their last checkpoint, to the weights that they would have had.
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
from ray import cloudpickle as pickle  # of what a script defines, too
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
MAX_FAILURES = 3  # of workers in one run; then it is not chance
CHECKPOINT_FILE = "state"
BATCHES_AHEAD = 16  # of each file that is read, so many wait at most

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@contextmanager
def cluster(config: EngineConfig) -> Iterator[None]:
    """Be connected to the cluster of ``RAY_ADDRESS``, or to one of this machine's own.

    Raises:
        TrainingError: If there is no such cluster, or it is too small.
    """
    if config.num_workers < 1:
        raise TrainingError(f"--num-workers {config.num_workers}: expected 1 or more")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # they are handled
    # How often workers are asked for checkpoints: at 2 s, that is what an epoch would take.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    with tempfile.TemporaryDirectory(prefix="recmar-", ignore_cleanup_errors=True) as scratch:
        if address := os.environ.get("RAY_ADDRESS"):
            # Its machines need what is installed here, but no checkout.
            options: dict[str, Any] = {}
            code = {"py_modules": [handlers, training]}
        else:
            # Otherwise Ray makes one up that it leaves in the home folder.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            options = {"num_cpus": config.num_workers, "_temp_dir": scratch}
            code = {}
        here = Path.cwd()

        def prepare() -> None:  # inside, since a worker that calls it cannot import this module yet
            logging.getLogger("ray").setLevel(logging.ERROR)
            with suppress(OSError):
                os.chdir(here)  # files of a shared folder have the same relative paths

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
    """One of several processes, each with its share of every batch, or of the rows."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.size = context.get_world_rank(), context.get_world_size()

    def saved(self) -> Any:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            state = pickle.loads((Path(folder) / CHECKPOINT_FILE).read_bytes())
        logger.warning("a worker died; all go on after %s", state["said"])
        return state

    def save(self, state: dict[str, Any]) -> None:
        logger.info(state["said"])
        with tempfile.TemporaryDirectory() as folder:
            if self.rank == 0:
                (Path(folder) / CHECKPOINT_FILE).write_bytes(pickle.dumps(state))
            checkpoint = ray.train.Checkpoint(folder) if self.rank == 0 else None
            ray.train.report({}, checkpoint=checkpoint)

    def wrap(self, network: nn.Module, step: Step) -> Step:
        wrapped: Step = DistributedDataParallel(_Step(network, step), forward_sync_buffers=False)
        return wrapped

    def order(self, n_rows: int, seed: int, epoch: int) -> Tensor:
        # Every epoch has seeds of its own, so that one after a checkpoint is like any other.
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
    """A step as a module: only one that owns the parameters can be wrapped."""

    def __init__(self, network: nn.Module, step: Step) -> None:
        super().__init__()
        self.network, self.step = network, step

    def forward(self, index: Tensor) -> Tensor:
        """The loss of some rows, int64 [B] -> float32 []."""
        return self.step(index)


def run(
    library: Literal["torch", "xgboost"],
    loop: Callable[[Any, Worker], Result],
    config: EngineConfig,
    jobs: Sequence[Any],
) -> Result:
    """Run a training loop in every worker.

    Args:
        library: What carries messages between the workers.
        loop: Is given a worker's job and the worker.
        config: How many workers, and where their checkpoints go.
        jobs: One for each worker, or one for all.

    Returns:
        What the first worker's loop returned.

    Raises:
        TrainingError: If a worker's loop raises it, or workers died too often.
    """
    # As bytes: Ray's own arrays share memory, and cannot be written to.
    refs = [ray.put(pickle.dumps((loop, job))) for job in jobs]

    def work() -> bytes:
        worker = _RayWorker()
        # What this project's code says in the first worker is enough.
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("training").setLevel(logging.ERROR if worker.rank else logging.INFO)
        seed_everything(0)  # for its one thread; the loops have seeds of their own
        loop, job = pickle.loads(ray.get(refs[worker.rank % len(refs)]))
        try:
            done: Result | TrainingError = loop(job, worker)
        except TrainingError as error:  # raised, it would be tried again
            done = error
        told: bytes = pickle.dumps(done)  # Ray itself takes no tensors here
        return told

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
        at_ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(f"--engine ray: {error}") from error
        except SystemExit:  # Ray's answer to Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGINT, at_ctrl_c)
        with suppress(OSError):  # what was trained is worth more than a tidy folder
            result.filesystem.delete_dir(result.path)
    done: Result | TrainingError = pickle.loads(result.return_value)
    if isinstance(done, TrainingError):
        raise done
    return done


def read_in_shards(data: DataSet, config: EngineConfig) -> DataSet:
    """The same data, its files read by the cluster: as many at a time as there are workers."""
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
        ahead: What is to be read meanwhile: itself, and some that follow it.
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
        """Have the rows read, if they are not yet."""
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
    for batch in source.batches(columns):  # noqa: UP028 - Ray calls send(), which not all have
        yield batch
