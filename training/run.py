"""The frame of every training run: its flags, its artifacts and its exit status."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError

from handlers import logs
from handlers.errors import UserError
from handlers.schema import VOCABULARIES_FILE
from training import artifacts
from training.bounds import Seed
from training.data.config import DataConfig
from training.data.sources import DataSet
from training.engine.launch import read_by_engine, running_engine
from training.engine.worker import EngineConfig, TrainingError
from training.evaluation import Evaluation
from training.folders import writing_folder
from training.golden import Golden

INTERRUPTED = 130
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig(DataConfig, EngineConfig):
    """A training run.

    Attributes:
        version: Version of the artifacts; by default the UTC time.
        seed: Seed of the split, the weights and the order of the rows.
        artifacts_dir: Folder of all artifacts; a run writes <artifacts_dir>/<model>/<version>/.
    """

    # Name of the model, and of the folder of its artifacts.
    model: ClassVar[str]
    # Flags that list input columns, separated by commas.
    column_flags: ClassVar[Sequence[str]] = ()
    # Whether the model's training loop can run in several processes.
    distributable: ClassVar[bool] = True

    version: str = field(default_factory=artifacts.new_version)
    seed: Seed = 0
    artifacts_dir: Path = artifacts.ARTIFACTS

    def folder(self) -> Path:
        """Return the folder for the artifacts of the run."""
        return self.artifacts_dir / self.model / self.version

    def data(self, *args: Any, **kwargs: Any) -> DataSet:
        """Find the data as :class:`DataConfig` does; the engine reads it."""
        return read_by_engine(super().data(*args, **kwargs), self)


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
    with writing_folder(config.folder(), replace=True) as folder:
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
    logs.about(version=config.version)
    try:
        artifacts.check_version(config.version)
        _check_flags(config)
        with running_engine(config):
            folder = train(config)
    except (UserError, OSError) as error:
        for line in str(error).splitlines():
            logger.error("%s", line)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted; no artifacts were written")
        return INTERRUPTED
    print(f"artifacts: {folder}")
    return 0


def check_bounds(config: RunConfig) -> None:
    """Check every flag against the bounds in the type of its field, such as ``Field(ge=1)``.

    Raises:
        TrainingError: If a flag is out of bounds; the message names it and the bounds.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    try:
        TypeAdapter(type(config)).validate_python(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise TrainingError(_bounds_message(type(config), name, values[name])) from error


def _bounds_message(config_class: type[RunConfig], name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers:
        return f"{flag}: expected at least one number, got none"
    schema = TypeAdapter(get_type_hints(config_class, include_extras=True)[name]).json_schema()
    bounds = schema.get("items", schema)
    expected = f"{bounds['minimum']:g} or more"
    if "maximum" in bounds:
        expected = f"{bounds['minimum']:g} to {bounds['maximum']:.10g}"
    return f"{flag} {' '.join(map(str, numbers))}: expected {expected}"


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
    if config.engine != "local" and not config.distributable:
        raise TrainingError(
            f"--engine {config.engine}: gensim trains this model, on one machine only; "
            "leave the flag out"
        )
