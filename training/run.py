"""What every training run shares: its version, its artifacts, its exit status."""

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
from handlers.schema import VOCABULARIES_FILE
from training import artifacts
from training.bounds import Seed
from training.data.config import DataConfig
from training.data.sources import DataError, DataSet
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
        version: Of the artifacts; the UTC time by default.
        seed: Of the split, the weights and the order of the rows.
        artifacts_dir: Artifacts go to <artifacts_dir>/<model>/<version>/.
    """

    # Flags that list input columns, separated by commas.
    column_flags: ClassVar[Sequence[str]] = ()
    # Whether the model's training loop can run in several processes.
    distributable: ClassVar[bool] = True

    version: str = field(default_factory=artifacts.new_version)
    seed: Seed = 0
    artifacts_dir: Path = artifacts.ARTIFACTS

    def folder(self, model: str) -> Path:
        """Where the artifacts of a model go."""
        return self.artifacts_dir / model / self.version

    def data(self, *args: Any, **kwargs: Any) -> DataSet:
        """Find the data as :class:`DataConfig` does; the engine reads it."""
        return read_by_engine(super().data(*args, **kwargs), self)


Config = TypeVar("Config", bound=RunConfig)


class TrainingScript(Protocol):
    """What the gate, the benchmarks and the tests ask of ``training/train_<model>.py``."""

    Config: type[RunConfig]

    def evaluation(self, config: Any, columns: Sequence[str] = ()) -> Evaluation:
        """What the model is judged on.

        Args:
            config: Of the script's own ``Config``.
            columns: Further columns that results can be grouped by, where the data has any.
        """

    def train(self, config: Any) -> Path:
        """Train, report and write the artifacts; returns their folder."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run from the command line; returns the exit status."""


def load_script(name: str) -> TrainingScript:
    """Import a training script.

    Args:
        name: Of its module in ``training/``, such as ``train_deepfm``.

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


def split_names(text: str) -> list[str]:
    """Split a flag's ``a,b,c``."""
    return [name.strip() for name in text.split(",") if name.strip()]


@contextmanager
def writing_artifacts(
    model: str,
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
    """Write what packaging needs into ``<artifacts_dir>/<model>/<version>/``.

    The block adds weights and curves to the folder that it is given; metrics, golden rows and the
    meta file, which lists all others, follow when it ends.

    Args:
        model: Its name; ``reports[model]`` are its metrics on the test split.
        meta_file: Name of the meta file that the handler reads.
        config: Of the run.
        arch_version: Of the code that can load the weights.
        reports: Metrics by model, baselines and oracle included.
        golden: Written to ``golden.json``; or by file name, where one run trains several models.
        vocabularies: Tokens by category feature.
        libraries: Distributions that the model needs beside those of every handler.
        meta: What the meta file holds besides, ``features`` above all.
    """
    files = {"golden.json": golden} if isinstance(golden, Golden) else golden
    with writing_folder(config.folder(model), replace=True) as folder:
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
                "metrics": reports[model],
            },
            libraries,
        )


def run_training(train: Callable[[Config], Path], config: Config) -> int:
    """Run a training script: where the artifacts are goes to stdout, a user's mistake to stderr.

    Returns:
        The exit status.
    """
    logs.to_stderr()
    logs.about(version=config.version)
    try:
        artifacts.check_version(config.version)
        _check(config)
        with running_engine(config):
            folder = train(config)
    except (DataError, artifacts.ArtifactError, TrainingError, OSError) as error:
        for line in str(error).splitlines():
            logger.error("%s", line)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted; no artifacts were written")
        return INTERRUPTED
    print(f"artifacts: {folder}")
    return 0


def check_bounds(config: RunConfig) -> None:
    """Hold every flag against the bounds beside its field, such as ``Field(ge=1)``.

    Raises:
        TrainingError: If a flag is out of bounds; names it and says what was expected.
    """
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    try:
        TypeAdapter(type(config)).validate_python(values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise TrainingError(_out_of_bounds(type(config), name, values[name])) from error


def _out_of_bounds(config_class: type[RunConfig], name: str, value: Any) -> str:
    flag = f"--{name.replace('_', '-')}"
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers:
        return f"{flag}: expected a number or more, got none"
    schema = TypeAdapter(get_type_hints(config_class, include_extras=True)[name]).json_schema()
    bounds = schema.get("items", schema)
    expected = f"{bounds['minimum']:g} or more"
    if "maximum" in bounds:
        expected = f"{bounds['minimum']:g} to {bounds['maximum']:.10g}"
    return f"{flag} {' '.join(map(str, numbers))}: expected {expected}"


def _check(config: RunConfig) -> None:
    """Find what would end the run, or be found only at its end.

    Raises:
        TrainingError: If a flag makes no sense, or the artifacts cannot be written.
    """
    check_bounds(config)
    folder = config.artifacts_dir
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TrainingError(f"--artifacts-dir {folder}: expected a folder that can be written to")
    if config.engine != "local" and not config.distributable:
        raise TrainingError(
            f"--engine {config.engine}: gensim trains this model, on one machine only; "
            "leave the flag out"
        )
