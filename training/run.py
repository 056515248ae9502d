"""The frame of every training run: its flags, its artifacts and its exit status."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch

from handlers import logs
from handlers.errors import UserError
from handlers.schema import VOCABULARIES_FILE, FeatureSchema
from training import artifacts
from training.base_version import BaseVersion, Network
from training.bounds import Seed, check_bounds
from training.data import validation
from training.data.config import DataConfig
from training.data.feature_flags import split_names
from training.data.inspection.hints import check_default_columns
from training.data.sources import DataSet
from training.engine import launch
from training.engine.checkpoints import (
    Checkpoints,
    checkpoint_folder,
    how_to_resume,
    version_to_resume,
)
from training.engine.devices import check_engine
from training.engine.launch import read_by_engine, running_engine
from training.engine.worker import EngineConfig, TrainingError
from training.evaluation import Evaluation
from training.folders import claimed_folder, writing_folder
from training.golden import Golden

INTERRUPTED = 130
# Flags that a resumed run may change: where the data and the artifacts are, and what is read of the
# data besides the rows that it trains on.
_NOT_OF_RESULT = {
    *("version", "artifacts_dir", "strict", "extra_columns", "data_path", "data_source"),
    *("table", "query", "dsn", "oss_endpoint", "oss_region", "doris_host", "doris_port"),
    *("doris_user", "doris_database", "num_workers", "checkpoint_dir"),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig(DataConfig, EngineConfig):
    """A training run.

    Attributes:
        version: Version of the artifacts; by default the UTC time.
        seed: Seed of the split, the weights and the order of the rows.
        artifacts_dir: Folder of all artifacts; a run writes <artifacts_dir>/<model>/<version>/.
        init_from: Start from the weights of this version, or of the version in a folder, such as
            ./v1, and add new tokens to its vocabularies. The features must be the same.
    """

    # Name of the model, and of the folder of its artifacts.
    model: ClassVar[str]
    # Flags that list input columns, separated by commas.
    column_flags: ClassVar[Sequence[str]] = ()
    # Library that trains the model. Only torch and xgboost use a GPU, or several processes.
    library: ClassVar[str] = "torch"

    version: str = ""
    seed: Seed = 0
    artifacts_dir: Path = artifacts.ARTIFACTS
    init_from: str = ""

    def __post_init__(self) -> None:
        """Name the version, unless it is to be found among the unfinished ones."""
        if not self.version and not self.resume:
            object.__setattr__(self, "version", artifacts.new_version())

    def versions(self) -> Path:
        """Return the folder of all versions of the model."""
        return self.artifacts_dir / self.model

    def folder(self) -> Path:
        """Return the folder for the artifacts of the run."""
        return self.versions() / self.version

    def check_default_columns(
        self, data: DataSet, *names: str, optional: Collection[str] = ()
    ) -> None:
        """Refuse data that lacks the columns of flags that have their default value.

        Args:
            data: The data of the run.
            names: Fields that name columns.
            optional: Columns that the data may lack.

        Raises:
            DataError: If it lacks most columns of a flag; the message has the flags for this data.
        """
        defaults = {
            f"--{f.name.replace('_', '-')}": split_names(str(f.default))
            for f in fields(self)
            if f.name in names and getattr(self, f.name) == f.default
        }
        if not self.uses_default_data:
            check_default_columns(data, self.model, defaults, optional)

    def base(self) -> BaseVersion | None:
        """Return the version to start from; None to start from nothing."""
        if not self.init_from:
            return None
        return BaseVersion.find(self.init_from, self.model, self.artifacts_dir)

    def base_schema(self, key: str = "features") -> FeatureSchema | None:
        """Return the features of the version to start from, at a key of its meta file."""
        base = self.base()
        return None if base is None else base.schema(key)

    def base_network(
        self, network_class: type[Network], file: str, arch_version: int
    ) -> Network | None:
        """Return the network of the version to start from; see :meth:`BaseVersion.network`."""
        base = self.base()
        return None if base is None else base.network(network_class, file, arch_version)

    def data(self, *args: Any, **kwargs: Any) -> DataSet:
        """Find the data as :class:`DataConfig` does; the engine reads it."""
        return read_by_engine(super().data(*args, **kwargs), self)

    def public(self) -> dict[str, Any]:
        """Return all flags that are neither secret nor about how the run was started."""
        return {name: value for name, value in super().public().items() if name != "resume"}

    def flags_of_result(self) -> dict[str, Any]:
        """Return the flags that the weights depend on; the data is known by its hash."""
        return {name: v for name, v in self.public().items() if name not in _NOT_OF_RESULT}


Config = TypeVar("Config", bound=RunConfig)


class TrainingScript(Protocol):
    """What the gate, the benchmarks and the tests need from ``training/train_<model>.py``."""

    Config: type[RunConfig]

    def evaluation(self, config: Any, columns: Sequence[str] = ()) -> Evaluation:
        """Load the test split, the metrics and the baselines.

        Args:
            config: An instance of the script's ``Config``.
            columns: Further columns to group results by.
        """

    def train(self, config: Any) -> Path:
        """Train, report and write the artifacts; return their folder."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run from the command line; return the exit status."""


def load_script(name: str) -> TrainingScript:
    """Import a training script.

    Args:
        name: Name of a module in ``training/``, such as ``train_deepfm``.

    Raises:
        TrainingError: If there is no such script, or it lacks a part of the protocol.
    """
    try:
        module = importlib.import_module(f"training.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"training.{name}":
            raise
        raise TrainingError(f"training/{name}.py: no such script") from error
    parts = ("Config", "evaluation", "train", "main")
    if missing := [part for part in parts if not hasattr(module, part)]:
        raise TrainingError(
            f"training/{name}.py: expected {', '.join(missing)}; see TrainingScript"
        )
    return cast(TrainingScript, module)


@contextmanager
def writing_artifacts(
    meta_file: str,
    config: RunConfig,
    *,
    arch_version: int,
    reports: Mapping[str, Mapping[str, float]],
    golden: Golden | Mapping[str, Golden],
    vocabularies: Mapping[str, Sequence[str]],
    libraries: Sequence[str] = (),
    **meta: Any,
) -> Iterator[Path]:
    """Write the files that packaging needs into ``<artifacts_dir>/<model>/<version>/``.

    Yields an empty folder, to which the block adds weights and curves. Metrics, golden rows,
    vocabularies and the meta file, which lists all other files, follow when the block ends.

    Args:
        meta_file: Name of the meta file that the handler reads.
        config: Flags of the run.
        arch_version: Version of the code that can load the weights.
        reports: Metrics on the test split of the model, the baselines and the oracle, by name.
        golden: Golden rows for ``golden.json``; or by file name, if one run trains several models.
        vocabularies: Tokens by category feature.
        libraries: Distributions that the model needs in addition to those of every handler.
        meta: Further entries of the meta file, such as ``features``.
    """
    files = {"golden.json": golden} if isinstance(golden, Golden) else golden
    with writing_folder(config.folder(), new=True) as folder:
        yield folder
        artifacts.write_json(folder / "metrics.json", {"test": reports})
        artifacts.write_json(folder / VOCABULARIES_FILE, vocabularies)
        for name, value in files.items():
            artifacts.write_json(folder / name, asdict(value))
        artifacts.write_meta(
            folder / meta_file,
            {
                "arch_version": arch_version,
                "model_version": config.version,
                **meta,
                "seed": config.seed,
                "hyperparameters": config.public(),
                "metrics": reports[config.model],
            },
            libraries,
        )


def run_training(train: Callable[[Config], Path], config: Config) -> int:
    """Run a training script.

    Prints the folder of the artifacts to stdout, and the message of a user's mistake to stderr.

    Returns:
        The exit status.
    """
    logs.to_stderr()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up, as after Ctrl-C
    try:
        if config.resume:
            config = replace(config, version=version_to_resume(config.versions(), config.version))
        logs.about(version=config.version)
        artifacts.check_version(config.version)
        _check_flags(config)
        checkpoints = Checkpoints(
            checkpoint_folder(config.folder()), config.flags_of_result(), resume=config.resume
        )
        with (
            claimed_folder(config.folder()),
            running_engine(config),
            launch.saving_to(checkpoints),
        ):
            folder = train(config)
    except (UserError, OSError) as error:
        for line in str(error).splitlines():
            logger.error("%s", line)
        return 1
    except torch.OutOfMemoryError:
        logger.error(
            "--device %s: the memory of the GPU is too small; lower --batch-size, or leave the "
            "flag out",
            config.device,
        )
        return 1
    except KeyboardInterrupt:
        logger.warning(
            "interrupted; no artifacts were written%s",
            how_to_resume(config.versions(), config.version),
        )
        return INTERRUPTED
    print(f"artifacts: {folder}")
    return 0


def check_data(test: Evaluation, labels: Sequence[str], config: RunConfig) -> dict[str, Any]:
    """Warn of doubtful training data, and refuse to resume a run on other data.

    Args:
        test: Holds the training split and the hash of the data.
        labels: Columns to predict.
        config: Flags of the run.

    Returns:
        Statistics of the training split for the meta file.

    Raises:
        DataError: If the data is doubtful and ``--strict`` is set.
        TrainingError: If the run to continue was on other data.
    """
    launch.check_data(test.data_sha256)
    return validation.check(test.train_frame, labels, config)


def _check_flags(config: RunConfig) -> None:
    """Check the flags before any work is done.

    Raises:
        TrainingError: If a flag makes no sense, or the artifacts cannot be written.
    """
    check_bounds(config)
    folder = config.artifacts_dir
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise TrainingError(f"--artifacts-dir {folder}: expected a folder that can be written to")
    check_engine(config, config.library)
    if config.init_from and config.library not in ("torch", "xgboost"):
        raise TrainingError(
            f"--init-from: {config.library} trains this model, from the start only; leave the "
            "flag out"
        )
    if base := config.base():
        base.check_files()
