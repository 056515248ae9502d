"""The loop that boosts trees."""

from __future__ import annotations

from dataclasses import dataclass
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
        groups: Group of each row, [B]; None if the objective does not rank.
    """

    matrix: Array
    labels: Array
    groups: npt.NDArray[Any] | None = None

    def sorted_by_group(self) -> Rows:
        """Return the rows with those of a group together and its number, from 0, as the group."""
        if self.groups is None:
            return self
        numbers = np.unique(self.groups, return_inverse=True)[1]
        order = np.argsort(numbers, kind="stable")
        return Rows(self.matrix[order], self.labels[order], numbers[order])

    def shares(self, n: int) -> list[Rows]:
        """Deal the rows to n workers; those of a group stay together."""
        if self.groups is None:
            return [Rows(self.matrix[i::n], self.labels[i::n]) for i in range(n)]
        parts = [self.groups % n == i for i in range(n)]
        return [Rows(self.matrix[p], self.labels[p], self.groups[p]) for p in parts]


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
        MatrixBatches(job.train, config.batch_size), max_bin=parameters["max_bin"]
    )
    valid_data = xgb.QuantileDMatrix(MatrixBatches(job.valid, config.batch_size), ref=train_data)
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
        rows: The rows; those of a group stand together.
        batch_size: Rows of a batch; more where a group would be cut in two.
    """

    def __init__(self, rows: Rows, batch_size: int) -> None:
        super().__init__()
        cuts = np.arange(batch_size, len(rows.labels), batch_size)
        if rows.groups is not None:
            ends = np.append(np.flatnonzero(np.diff(rows.groups)) + 1, len(rows.labels))
            cuts = np.unique(ends[np.searchsorted(ends, cuts)])
        batches = [np.split(values, cuts) for values in (rows.matrix, rows.labels)]
        keys = ["data", "label"]
        if rows.groups is not None:
            batches.append(np.split(rows.groups, cuts))
            keys.append("qid")
        self._batches = [
            dict(zip(keys, batch, strict=True))
            for batch in zip(*batches, strict=True)
            if len(batch[0])
        ]
        self._next = 0

    def next(self, input_data: Any) -> bool:
        """Pass the next batch on; returns False after the last one."""
        if self._next == len(self._batches):
            return False
        input_data(**self._batches[self._next])
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
