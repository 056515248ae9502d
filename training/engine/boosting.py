"""The loop that boosts trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xgboost as xgb
from tqdm import tqdm

from training.engine.launch import run_loop
from training.engine.tree_parameters import BoostConfig
from training.engine.worker import Worker

# Trees between two checkpoints of several workers.
CHECKPOINT_TREES = 50

Array = npt.NDArray[np.float32]
History = dict[str, list[float]]


@dataclass(frozen=True)
class Rows:
    """Rows to boost on or to validate on.

    Attributes:
        matrix: Features, float32 [B, C].
        labels: Labels, float32 [B].
        weights: Weights of the rows, float32 [B]; None if the objective ranks.
        groups: Group of each row, [B]; None if the objective does not rank.
    """

    matrix: Array
    labels: Array
    weights: Array | None = None
    groups: npt.NDArray[Any] | None = None

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> Rows:
        """Select rows by position or mask."""
        return Rows(
            self.matrix[rows],
            self.labels[rows],
            None if self.weights is None else self.weights[rows],
            None if self.groups is None else self.groups[rows],
        )

    def sorted_by_group(self) -> Rows:
        """Return the rows with those of a group together and its number, from 0, as the group."""
        if self.groups is None:
            return self
        numbers = np.unique(self.groups, return_inverse=True)[1]
        return replace(self, groups=numbers)[np.argsort(numbers, kind="stable")]

    def shares(self, n: int) -> list[Rows]:
        """Deal the rows, sorted by group, to n workers; those of a group stay together."""
        if self.groups is None:
            return [self[i::n] for i in range(n)]
        return [self[self.groups % n == i] for i in range(n)]

    def batches(self, size: int) -> list[Rows]:
        """Cut the rows, sorted by group, into batches; larger ones where a group would be cut."""
        cuts = np.arange(0, len(self.labels), size)
        if self.groups is not None:
            starts = np.flatnonzero(np.diff(self.groups, prepend=-1))
            cuts = np.unique(starts[np.searchsorted(starts, cuts, side="right") - 1])
        return [self[start:stop] for start, stop in pairwise([*cuts.tolist(), len(self.labels)])]


def boost(
    config: BoostConfig, parameters: dict[str, Any], train: Rows, valid: Rows
) -> tuple[xgb.Booster, History]:
    """Boost until the validation metric stops improving; keep the trees up to the best round.

    Args:
        config: How to boost.
        parameters: XGBoost's parameters.
        train: Rows to boost on.
        valid: Rows that select the number of trees.

    Returns:
        The booster, which predicts on the CPU; and the metric after each round, by ``train`` and
        ``valid``.
    """
    n = config.n_workers
    parts = (rows.sorted_by_group().shares(n) for rows in (train, valid))
    jobs = [_Job(config, parameters, *share) for share in zip(*parts, strict=True)]
    booster, history = run_loop("xgboost", _boost, config, jobs)
    best = booster[: booster.best_iteration + 1]
    best.set_param({"device": "cpu"})
    return best, history


@dataclass(frozen=True)
class _Job:
    """A worker's share of the rows."""

    config: BoostConfig
    parameters: dict[str, Any]
    train: Rows
    valid: Rows


def _boost(job: _Job, worker: Worker) -> tuple[xgb.Booster, History]:
    """Boost on a worker's rows; XGBoost adds up the statistics of all workers."""
    config, parameters = job.config, job.parameters
    is_local = config.engine == "local"
    train_data = xgb.QuantileDMatrix(
        MatrixBatches(job.train.batches(config.batch_size)), max_bin=parameters["max_bin"]
    )
    valid_data = xgb.QuantileDMatrix(
        MatrixBatches(job.valid.batches(config.batch_size)), ref=train_data
    )
    state = worker.saved() or {
        "booster": None,
        "history": {"train": [], "valid": []},
        "stopping": xgb.callback.EarlyStopping(rounds=config.patience, maximize=config.ranks),
    }
    history, stopping = state["history"], state["stopping"]
    with TreeProgress(config.epochs, config.metric) as progress:
        while (n_done := len(history["valid"])) < config.epochs:
            if stopping.current_rounds >= config.patience:
                break
            n_rounds = config.epochs - n_done
            losses: dict[str, dict[str, list[float]]] = {}
            state["booster"] = xgb.train(
                # A seed of its own for each part, or the parts would draw the same subsamples.
                {**parameters, "seed": parameters["seed"] + n_done},
                train_data,
                num_boost_round=n_rounds if is_local else min(n_rounds, CHECKPOINT_TREES),
                evals=[(train_data, "train"), (valid_data, "valid")],
                evals_result=losses,
                verbose_eval=False,
                callbacks=[progress, stopping],
                xgb_model=state["booster"],
            )
            for split, values in losses.items():
                history[split] += values[config.metric]
            score = f"valid {config.metric} {history['valid'][-1]:.4f}"
            worker.save(state | {"summary": f"{len(history['valid'])} trees, {score}"})
    return state["booster"], history


class MatrixBatches(xgb.DataIter):
    """Passes a matrix to XGBoost in batches, which bounds the memory of the quantile sketch.

    Args:
        batches: The rows; a group is in one batch.
    """

    def __init__(self, batches: Sequence[Rows]) -> None:
        super().__init__()
        self._batches = batches
        self._next = 0

    def next(self, input_data: Any) -> bool:
        """Pass the next batch on; returns False after the last one."""
        if self._next == len(self._batches):
            return False
        rows = self._batches[self._next]
        input_data(data=rows.matrix, label=rows.labels, weight=rows.weights, qid=rows.groups)
        self._next += 1
        return True

    def reset(self) -> None:
        """Start again from the first batch."""
        self._next = 0


class TreeProgress(xgb.callback.TrainingCallback):
    """Progress bar over the rounds, shown on a terminal only."""

    def __init__(self, rounds: int, metric: str) -> None:
        super().__init__()
        self._bar = tqdm(total=rounds, unit="tree", disable=None, leave=False)
        self._metric = metric

    def __enter__(self) -> Self:
        """Start the bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.close()

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Advance the bar by one tree; never stops the training."""
        self._bar.update()
        self._bar.set_description(
            f"valid {self._metric} {evals_log['valid'][self._metric][-1]:.4f}"
        )
        return False
