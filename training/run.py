"""What every training run shares: its version, its artifacts, its exit status."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from handlers import logs
from handlers.schema import VOCABULARIES_FILE
from training import artifacts
from training.data.config import DataConfig
from training.data.tables import DataError, DataSet
from training.engine.worker import EngineConfig, TrainingError
from training.golden import Golden

INTERRUPTED = 130
SHARE = (0.001, 0.999)
AT_LEAST_1 = (1, math.inf)
# What each flag may be, in whichever scripts have it; of several numbers each.
LIMITS: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("epochs", "batch_size", "patience", "min_count"), AT_LEAST_1),
    **dict.fromkeys(("dim", "embed_dim", "embedding_dim", "feature_dim"), AT_LEAST_1),
    **dict.fromkeys(("hidden", "layers", "user_layers", "item_layers"), AT_LEAST_1),
    **dict.fromkeys(("expert_hidden", "tower_hidden", "n_experts", "n_weightings"), AT_LEAST_1),
    **dict.fromkeys(("window", "negative", "num_walks", "max_history", "max_docs"), AT_LEAST_1),
    **dict.fromkeys(("max_depth", "sampled_items"), AT_LEAST_1),
    **dict.fromkeys(("walk_length", "max_bin"), (2, math.inf)),
    **dict.fromkeys(("extra_negatives", "full_softmax_items", "sample"), (0, math.inf)),
    **dict.fromkeys(("weight_decay", "embedding_decay", "min_child_weight"), (0, math.inf)),
    **dict.fromkeys(("lr", "eta"), (1e-9, 1)),
    **dict.fromkeys(("dropout", "token_dropout", "id_dropout"), (0, 0.999)),
    **dict.fromkeys(("valid_share", "test_share"), SHARE),
    "subsample": (0.001, 1),
    **dict.fromkeys(("task_weights", "in_batch_weight"), (0, math.inf)),
    **dict.fromkeys(("p", "q"), (0.01, 100)),  # beyond, walks would take forever
}

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
    seed: int = 0
    artifacts_dir: Path = artifacts.ARTIFACTS

    def folder(self, model: str) -> Path:
        """Where the artifacts of a model go."""
        return self.artifacts_dir / model / self.version

    def data(self, *args: Any, **kwargs: Any) -> DataSet:
        """As of :class:`DataConfig`; with a cluster, it is what reads."""
        found = super().data(*args, **kwargs)
        if self.engine == "local":
            return found
        from training.engine import ray as distributed

        return distributed.read_in_shards(found, self)


Config = TypeVar("Config", bound=RunConfig)


def names(text: str) -> list[str]:
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
        meta: What the meta file holds besides, ``features`` above all.
    """
    files = {"golden.json": golden} if isinstance(golden, Golden) else golden
    with artifacts.writing(model, config.version, config.artifacts_dir) as folder:
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
        )


def run(train: Callable[[Config], Path], config: Config) -> int:
    """Run a training script: where the artifacts are goes to stdout, a user's mistake to stderr.

    Returns:
        The exit status.
    """
    logs.to_stderr()
    logs.about(version=config.version)
    try:
        artifacts.check_version(config.version)
        _check(config)
        with _engine(config):
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


def _check(config: RunConfig) -> None:
    """Find what would end the run, or be found only at its end.

    Raises:
        TrainingError: If a flag makes no sense, or the artifacts cannot be written.
    """
    for name, (low, high) in LIMITS.items():
        if not hasattr(config, name):
            continue
        value = getattr(config, name)
        values, flag = value if isinstance(value, tuple) else (value,), name.replace("_", "-")
        if not values:
            raise TrainingError(f"--{flag}: expected a number or more, got none")
        if not all(low <= number <= high and math.isfinite(number) for number in values):
            expected = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:.10g}"
            told = " ".join(map(str, values))
            raise TrainingError(f"--{flag} {told}: expected {expected}")
    folder = config.artifacts_dir
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TrainingError(f"--artifacts-dir {folder}: expected a folder that can be written to")


def _engine(config: RunConfig) -> AbstractContextManager[None]:
    """What trains, ready while the block runs.

    Raises:
        TrainingError: If it cannot.
    """
    if config.engine == "local":
        return nullcontext()
    if not config.distributable:
        raise TrainingError(
            f"--engine {config.engine}: gensim trains this model, and does so on one machine; "
            "leave the flag out"
        )
    try:
        from training.engine import ray as distributed
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise TrainingError(
            f"--engine {config.engine}: expected Ray to be installed; run: "
            ".venv/bin/pip install -c constraints.txt '.[distributed]'"
        ) from None
    return distributed.cluster(config)
