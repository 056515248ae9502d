"""Train gradient-boosted trees: ``python -m training.train_xgb``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import tyro
import xgboost as xgb
from pydantic import Field
from rich.console import Console

from handlers.models.xgb import ARCH_VERSION, BOOSTER_FILE, META_FILE
from handlers.schema import Matrix
from training import run
from training.bounds import Count, LearningRate, Weight
from training.engine.boosting import MatrixBatches, TreeProgress
from training.engine.fit import History
from training.engine.launch import run_loop
from training.engine.worker import Worker
from training.metrics.curves import save_curves
from training.metrics.tables import metric_table
from training.tasks.ranking.data import RankingConfig, Targets, load_ranking_data
from training.tasks.ranking.evaluation import RankingEvaluation
from training.tasks.ranking.target_encoding import fit_target_encodings

# The rounding of a sum depends on the number of threads; a fixed number makes runs repeatable.
N_THREADS = 2
# Trees between two checkpoints of several workers.
CHECKPOINT_TREES = 50
# Largest share of all hessians that a leaf may be required to hold. Without it, the default
# min_child_weight would never split a table of 800 rows.
MAX_LEAF_SHARE = 0.04

LabeledRows = tuple[Matrix, Targets]  # float32 [B, C] and float32 [B]


@dataclass(frozen=True)
class Config(RankingConfig):
    """Train gradient-boosted trees to predict clicks.

    Attributes:
        label: Column to predict, 0 or 1.
        epochs: Maximum number of boosting rounds, one tree each.
        batch_size: Rows that the quantile sketch takes at a time; bounds memory.
        patience: Stop after this many rounds without a better validation loss.
        max_depth: Maximum depth of a tree.
        eta: Learning rate.
        min_child_weight: Minimum sum of hessians in a leaf; capped at 4 % of the sum over all rows,
            so that small tables can be split.
        subsample: Share of the rows that each tree is grown on.
        max_bin: Maximum number of quantile bins of a column.
        normalize: Standardize the columns and write feature_scaler.json.
    """

    model: ClassVar[str] = "xgb"
    library: ClassVar[str] = "xgboost"

    label: str = "label"
    epochs: Count = 1500
    batch_size: Count = 100_000
    patience: Count = 50
    max_depth: Count = 5
    eta: LearningRate = 0.15
    min_child_weight: Weight = 50.0
    subsample: Annotated[float, Field(ge=0.001, le=1)] = 0.8
    max_bin: Annotated[int, Field(ge=2)] = 256
    normalize: bool = False


def evaluation(config: Config, columns: Sequence[str] = ()) -> RankingEvaluation:
    """Load the data to evaluate on, with further columns to group results by."""
    return RankingEvaluation(load_ranking_data(config, [config.label], columns), config.seed)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    labels = {split: targets[:, 0] for split, targets in data.targets.items()}
    inputs, encoded = fit_target_encodings(data.schema, data.train, labels["train"], config.seed)
    if config.normalize:
        inputs.mean = np.nanmean(encoded, axis=0)
        inputs.std = np.nanstd(encoded, axis=0).clip(1e-6)
        encoded = (encoded - inputs.mean) / inputs.std
    booster, history = _fit(
        config, (encoded, labels["train"]), (inputs(data.valid), labels["valid"])
    )

    def probabilities(matrix: Matrix) -> Any:
        return booster.predict(xgb.DMatrix(inputs(matrix)))

    scores = probabilities(data.test)
    reports = test.reports(config.model, scores)
    Console().print(
        metric_table(reports, f"XGBoost, {booster.num_boosted_rounds()} trees, on the test split")
    )
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=data.golden(lambda matrix: probabilities(matrix).tolist()),
        libraries=["xgboost"],
        label_column=config.label,
        normalized=config.normalize,
        statistics=statistics,
        **data.meta(),
    ) as folder:
        booster.save_model(folder / BOOSTER_FILE)
        inputs.save(folder, data.schema)
        save_curves(folder, history, labels["test"], scores)
    return config.folder()


def _fit(config: Config, train: LabeledRows, valid: LabeledRows) -> tuple[xgb.Booster, History]:
    """Boost until the validation loss stops falling; keep the trees up to the best round."""
    mean = float(train[1].mean())
    limit = MAX_LEAF_SHARE * len(train[1]) * mean * (1 - mean)
    config = replace(config, min_child_weight=min(config.min_child_weight, limit))
    n = config.n_workers
    shares = [[(x[i::n], y[i::n]) for x, y in (train, valid)] for i in range(n)]
    jobs = [_Job(config, *share) for share in shares]
    booster, history = run_loop("xgboost", _boost, config, jobs)
    return booster[: booster.best_iteration + 1], history


@dataclass(frozen=True)
class _Job:
    """A worker's share of the rows."""

    config: Config
    train: LabeledRows
    valid: LabeledRows


def _boost(job: _Job, worker: Worker) -> tuple[xgb.Booster, History]:
    """Boost on a worker's rows; XGBoost adds up the statistics of all workers."""
    config, is_local = job.config, job.config.engine == "local"
    train_data = xgb.QuantileDMatrix(
        MatrixBatches(*job.train, config.batch_size), max_bin=config.max_bin
    )
    valid_data = xgb.QuantileDMatrix(MatrixBatches(*job.valid, config.batch_size), ref=train_data)
    state = worker.saved() or {
        "booster": None,
        "history": {"train": [], "valid": []},
        "stopping": xgb.callback.EarlyStopping(rounds=config.patience),
    }
    history, stopping = state["history"], state["stopping"]
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "nthread": N_THREADS if is_local else 1,
        "max_depth": config.max_depth,
        "eta": config.eta,
        "min_child_weight": config.min_child_weight,
        "subsample": config.subsample,
        "max_bin": config.max_bin,
    }
    with TreeProgress(config.epochs) as progress:
        while (n_done := len(history["valid"])) < config.epochs:
            if stopping.current_rounds >= config.patience:
                break
            n_rounds = config.epochs - n_done
            losses: dict[str, dict[str, list[float]]] = {}
            state["booster"] = xgb.train(
                # A seed of its own for each part, or the parts would draw the same subsamples.
                {**parameters, "seed": config.seed + n_done},
                train_data,
                num_boost_round=n_rounds if is_local else min(n_rounds, CHECKPOINT_TREES),
                evals=[(train_data, "train"), (valid_data, "valid")],
                evals_result=losses,
                verbose_eval=False,
                callbacks=[progress, stopping],
                xgb_model=state["booster"],
            )
            for split, values in losses.items():
                history[split] += values["logloss"]
            summary = f"{len(history['valid'])} trees, valid loss {history['valid'][-1]:.4f}"
            worker.save(state | {"summary": summary})
    return state["booster"], history


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
