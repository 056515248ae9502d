"""Train gradient-boosted trees: ``python -m training.train_xgb``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import xgboost as xgb
from pydantic import Field
from rich.console import Console
from tqdm import tqdm

from handlers.models.xgb import ARCH_VERSION, BOOSTER_FILE, META_FILE, TreeInputs
from handlers.schema import Matrix
from training import run
from training.bounds import Count, LearningRate, Weight
from training.data import validation
from training.engine.fit import History
from training.engine.launch import run_loop
from training.engine.worker import Worker
from training.metrics.curves import save_curves
from training.metrics.tables import metric_table
from training.tasks.ranking.data import (
    RankingConfig,
    Targets,
    feature_meta,
    golden_predictions,
    load_ranking_data,
)
from training.tasks.ranking.evaluation import RankingEvaluation
from training.tasks.ranking.target_encoding import fit_target_encodings

# Sums over threads round differently for each number of them: a fixed one repeats on any machine.
N_THREADS = 2
# With several workers, so many trees are grown between two checkpoints.
CHECKPOINT_TREES = 50
# Of the sum of hessians: with the default least weight, 800 rows would not be split at all.
MAX_LEAF_SHARE = 0.04


@dataclass(frozen=True)
class Config(RankingConfig):
    """Train gradient-boosted trees to predict clicks.

    Attributes:
        label: Column to predict, 0 or 1.
        epochs: At most so many rounds of boosting, a tree each.
        batch_size: Rows handed to the quantile sketch at once; it bounds memory.
        patience: Stop after so many rounds without a better validation loss.
        max_depth: Of a tree.
        eta: Learning rate.
        min_child_weight: Least sum of hessians in a leaf; less where it would be more than 4 % of
            the sum over all rows, as on a small table.
        subsample: Share of the rows that each tree sees.
        max_bin: Quantile bins for each column.
        normalize: Standardize the columns, and write feature_scaler.json.
    """

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
    """What the model is judged on, with further columns to slice by."""
    return RankingEvaluation(load_ranking_data(config, [config.label], columns), config.seed)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; returns their folder."""
    test = evaluation(config)
    statistics = validation.check("xgb", test.train_frame, [config.label], config)
    data = test.data
    labels = {split: targets[:, 0] for split, targets in data.targets.items()}
    encodings, encoded = fit_target_encodings(data.schema, data.train, labels["train"], config.seed)
    inputs = TreeInputs(encodings)
    if config.normalize:
        inputs.mean = np.nanmean(encoded, axis=0)
        inputs.std = np.nanstd(encoded, axis=0).clip(1e-6)
        encoded = (encoded - inputs.mean) / inputs.std
    booster, history = _fit(
        config,
        (encoded, labels["train"]),
        (inputs(data.valid), labels["valid"]),
    )

    def probabilities(matrix: Matrix) -> Any:
        return booster.predict(xgb.DMatrix(inputs(matrix)))

    scores = probabilities(data.test)
    reports = test.reports("xgb", scores)
    Console().print(
        metric_table(reports, f"XGBoost, {booster.num_boosted_rounds()} trees, on the test split")
    )
    with run.writing_artifacts(
        "xgb",
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=golden_predictions(data, lambda matrix: probabilities(matrix).tolist()),
        libraries=["xgboost"],
        label_column=config.label,
        normalized=config.normalize,
        statistics=statistics,
        **feature_meta(data),
    ) as folder:
        booster.save_model(folder / BOOSTER_FILE)
        inputs.save(folder, data.schema)
        save_curves(folder, history, labels["test"], scores)
    return config.folder("xgb")


Rows = tuple[Matrix, Targets]


def _fit(config: Config, train: Rows, valid: Rows) -> tuple[xgb.Booster, History]:
    """Boost until the validation loss stops falling; keep the trees up to its best round."""
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
    """What a worker boosts: its share of the rows."""

    config: Config
    train: Rows
    valid: Rows


def _boost(job: _Job, worker: Worker) -> tuple[xgb.Booster, History]:
    """Boost with the rows of a worker, and what the others tell of theirs."""
    config, alone = job.config, job.config.engine == "local"
    train_data = xgb.QuantileDMatrix(
        _Batches(*job.train, config.batch_size), max_bin=config.max_bin
    )
    valid_data = xgb.QuantileDMatrix(_Batches(*job.valid, config.batch_size), ref=train_data)
    state = worker.saved() or {
        "booster": None,
        "history": {"train": [], "valid": []},
        "stopping": xgb.callback.EarlyStopping(rounds=config.patience),
    }
    history: History = state["history"]
    with _ProgressBar(config.epochs) as progress:
        while (left := config.epochs - len(history["valid"])) and state[
            "stopping"
        ].current_rounds < config.patience:
            losses: dict[str, dict[str, list[float]]] = {}
            state["booster"] = xgb.train(
                {
                    "objective": "binary:logistic",
                    "eval_metric": "logloss",
                    "tree_method": "hist",
                    "nthread": N_THREADS if alone else 1,
                    "seed": config.seed + len(history["valid"]),
                    "max_depth": config.max_depth,
                    "eta": config.eta,
                    "min_child_weight": config.min_child_weight,
                    "subsample": config.subsample,
                    "max_bin": config.max_bin,
                },
                train_data,
                num_boost_round=left if alone else min(left, CHECKPOINT_TREES),
                evals=[(train_data, "train"), (valid_data, "valid")],
                evals_result=losses,
                verbose_eval=False,
                callbacks=[progress, state["stopping"]],
                xgb_model=state["booster"],
            )
            for split, values in losses.items():
                history[split] += values["logloss"]
            summary = f"{len(history['valid'])} trees, valid loss {history['valid'][-1]:.4f}"
            worker.save(state | {"summary": summary})
    return state["booster"], history


class _Batches(xgb.DataIter):
    """Hands a matrix to XGBoost a part at a time."""

    def __init__(self, matrix: Matrix, labels: Targets, batch_size: int) -> None:
        super().__init__()
        self._parts = [
            (matrix[start : start + batch_size], labels[start : start + batch_size])
            for start in range(0, len(matrix), batch_size)
        ]
        self._next = 0

    def next(self, input_data: Any) -> bool:
        if self._next == len(self._parts):
            return False
        matrix, labels = self._parts[self._next]
        input_data(data=matrix, label=labels)
        self._next += 1
        return True

    def reset(self) -> None:
        self._next = 0


class _ProgressBar(xgb.callback.TrainingCallback):
    """A bar over the rounds, off when not a terminal."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._bar = tqdm(total=rounds, unit="tree", disable=None, leave=False)

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._bar.update()
        self._bar.set_description(f"valid loss {evals_log['valid']['logloss'][-1]:.4f}")
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
