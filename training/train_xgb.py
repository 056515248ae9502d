"""Train gradient-boosted trees: ``python -m training.train_xgb``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro
import xgboost as xgb
from rich.console import Console

from handlers.models.xgb import ARCH_VERSION, BOOSTER_FILE, META_FILE, TreeInputs
from handlers.schema import Matrix
from training import run
from training.base_version import BaseVersion
from training.engine.boosting import Rows, boost
from training.engine.tree_parameters import (
    BoostConfig,
    booster_parameters,
    leaf_limit,
    monotone_constraints,
)
from training.engine.worker import TrainingError
from training.metrics.curves import save_curves, save_loss
from training.metrics.tables import metric_table
from training.tasks.ranking.data import RankingConfig, load_ranking_data
from training.tasks.ranking.evaluation import ListEvaluation, RankingEvaluation
from training.tasks.ranking.target_encoding import (
    fit_target_encodings,
    hide_categories,
    keep_encodings,
)
from training.tasks.ranking.weights import WeightFlags


@dataclass(frozen=True)
class Config(RankingConfig, BoostConfig):
    """Train gradient-boosted trees to predict clicks, or to rank the rows of a group.

    Attributes:
        label: Column to predict, 0 or 1; 0 to 31 for rank:ndcg and rank:pairwise.
        normalize: Standardize the columns and write feature_scaler.json.
    """

    model: ClassVar[str] = "xgb"
    library: ClassVar[str] = "xgboost"

    label: str = "label"
    normalize: bool = False


def evaluation(config: Config, columns: Sequence[str] = ()) -> RankingEvaluation:
    """Load the data to evaluate on, with further columns to group results by."""
    if not config.ranks:
        return RankingEvaluation(load_ranking_data(config, [config.label], columns), config.seed)
    if not config.group:
        raise TrainingError(
            f"--objective {config.objective}: expected --group, the column that tells which rows "
            "are ranked together, such as session_id"
        )
    for flag in fields(WeightFlags):
        if getattr(config, flag.name) != flag.default:
            raise TrainingError(
                f"--{flag.name.replace('_', '-')}: expected --objective binary:logistic; "
                f"{config.objective} compares the rows of a group, and they all count the same"
            )
    grades = config.objective != "rank:map"
    data = load_ranking_data(config, [config.label], columns, whole_groups=True, has_grades=grades)
    return ListEvaluation(data, config.seed)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    parameters, base = booster_parameters(config), _base(config)
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    labels = {split: targets[:, 0] for split, targets in data.targets.items()}
    weights = data.weights
    parameters["min_child_weight"], share = leaf_limit(config, labels["train"], weights["train"])
    train_matrix, valid_matrix = (
        hide_categories(data.schema, matrix, labels[split], share, config.seed)
        for split, matrix in (("train", data.train), ("valid", data.valid))
    )
    inputs, encoded = fit_target_encodings(
        data.schema, train_matrix, labels["train"], weights["train"], config.seed
    )
    before = TreeInputs.load(base.folder) if base else None
    if before is not None:
        encoded = keep_encodings(before, inputs, train_matrix, encoded)
    if config.normalize:
        encoded = _standardize(inputs, encoded, before)
    parameters |= monotone_constraints(config.monotone, data.schema, encoded.shape[1])
    train_rows, valid_rows = (
        Rows(matrix, labels[split], groups=data.groups[split])
        if config.ranks
        else Rows(matrix, labels[split], weights[split])
        for split, matrix in (("train", encoded), ("valid", inputs(valid_matrix)))
    )
    trees_before = base.file(BOOSTER_FILE, ARCH_VERSION) if base else None
    booster, history = boost(config, parameters, train_rows, valid_rows, trees_before)

    def predict(matrix: Matrix) -> Any:
        return booster.predict(xgb.DMatrix(inputs(matrix)))

    results = predict(data.test)
    reports = test.reports(config.model, results)
    kind = f"scores of {config.objective}" if config.ranks else "probabilities"
    trees = f"{booster.num_boosted_rounds()} trees"
    Console().print(metric_table(reports, f"XGBoost, {trees}, {kind}, on the test split"))
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=data.golden(lambda matrix: predict(matrix).tolist()),
        libraries=["xgboost"],
        label_column=config.label,
        normalized=config.normalize,
        prediction="score" if config.ranks else "probability",
        statistics=statistics,
        **data.meta(),
    ) as folder:
        # save_model would not say that the disk is full.
        (folder / BOOSTER_FILE).write_bytes(booster.save_raw("json"))
        inputs.save(folder, data.schema)
        if config.ranks:
            save_loss(folder, history, config.metric)
        else:
            save_curves(folder, history, labels["test"], results)
    return config.folder()


def _standardize(inputs: TreeInputs, encoded: Matrix, before: TreeInputs | None) -> Matrix:
    """Scale the columns, float32 [B, C + K]: those of an earlier version as it scaled them."""
    mean, std = np.nanmean(encoded, axis=0), np.nanstd(encoded, axis=0).clip(1e-6)
    if before is not None:
        mean, std = np.asarray(before.mean), np.asarray(before.std)
    inputs.mean, inputs.std = mean, std
    scaled: Matrix = (encoded - mean) / std
    return scaled


def _base(config: Config) -> BaseVersion | None:
    """Return the version whose trees come first.

    Raises:
        TrainingError: If it learned something else, or from other columns.
    """
    base = config.base()
    if base is None:
        return None
    before = base.meta["hyperparameters"]
    for name in ("objective", "normalize"):
        if (was := before.get(name, getattr(Config, name))) != (now := getattr(config, name)):
            raise TrainingError(f"--init-from: expected --{name} {was}, got {now}")
    return base


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
