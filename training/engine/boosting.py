"""The loop that boosts trees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xgboost as xgb
from tqdm import tqdm

from training.engine.launch import run_loop
from training.engine.tree_parameters import BoostConfig
from training.engine.worker import Worker

# Trees between two checkpoints.
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
    config: BoostConfig,
    parameters: dict[str, Any],
    train: Rows,
    valid: Rows,
    base: Path | None = None,
) -> tuple[xgb.Booster, History]:
    """Boost until the validation metric stops improving; keep the trees up to the best round.

    Args:
        config: How to boost.
        parameters: XGBoost's parameters.
        train: Rows to boost on.
        valid: Rows that select the number of trees.
        base: A file of :meth:`xgboost.Booster.save_model` with trees to add to.

    Returns:
        The booster, which predicts on the CPU; and the metric after each round, by ``train`` and
        ``valid``.
    """
    trees = base.read_bytes() if base else None
    n = config.n_workers
    train_shares, valid_shares = (r.sorted_by_group().shares(n) for r in (train, valid))
    jobs = [
        _Job(config, parameters, train_share, valid_share, trees)
        for train_share, valid_share in zip(train_shares, valid_shares, strict=True)
    ]
    booster, history = run_loop("xgboost", _boost, config, jobs)
    n_before = booster.num_boosted_rounds() - len(history["valid"])
    best = booster[: n_before + _best_round(config, history["valid"]) + 1]
    best.set_param({"device": "cpu"})
    return best, history


@dataclass(frozen=True)
class _Job:
    """A worker's share of the rows, and the booster to add trees to."""

    config: BoostConfig
    parameters: dict[str, Any]
    train: Rows
    valid: Rows
    base: bytes | None = None


def _boost(job: _Job, worker: Worker) -> tuple[xgb.Booster, History]:
    """Boost on a worker's rows; XGBoost adds up the statistics of all workers."""
    config, trees = job.config, job.base
    train_data = xgb.QuantileDMatrix(
        MatrixBatches(job.train.batches(config.batch_size)), max_bin=job.parameters["max_bin"]
    )
    valid_data = xgb.QuantileDMatrix(
        MatrixBatches(job.valid.batches(config.batch_size)), ref=train_data
    )
    history: History = {"train": [], "valid": []}
    if state := worker.saved():
        history, trees = state["history"], state["booster"].numpy().tobytes()
    scores = history["valid"]
    # A seed of its own for each tree, or those after a checkpoint would draw other subsamples.
    booster = xgb.Booster(
        {**job.parameters, "seed_per_iteration": True},
        [train_data, valid_data],
        model_file=bytearray(trees) if trees else None,
    )
    n_before = booster.num_boosted_rounds() - len(scores)
    with tqdm(
        total=config.epochs, initial=len(scores), unit="tree", disable=None, leave=False
    ) as bar:
        while len(scores) < config.epochs and not _stalled(config, scores):
            booster.update(train_data, n_before + len(scores))
            evaluated = booster.eval_set([(train_data, "train"), (valid_data, "valid")])
            for split, score in re.findall(r"(train|valid)-[^:\s]+:(\S+)", evaluated):
                history[split].append(float(score))
            score = f"valid {config.metric} {scores[-1]:.4f}"
            bar.update()
            bar.set_description(score)
            if len(scores) % CHECKPOINT_TREES == 0:
                saved = torch.frombuffer(booster.save_raw(), dtype=torch.uint8)
                summary = f"{len(scores)} trees, {score}"
                worker.save({"summary": summary, "history": history, "booster": saved})
                _renew_updaters(booster, job.parameters["tree_method"])
    return booster, history


def _renew_updaters(booster: xgb.Booster, tree_method: str) -> None:
    """Let a booster start its next tree as one that was loaded from a checkpoint.

    What grows the trees draws a random number before its first one. XGBoost replaces it when the
    tree method changes, and keeps the predictions so far.
    """
    for method in ("approx" if tree_method == "hist" else "hist", tree_method):
        booster.set_param({"tree_method": method})
        booster.save_config()  # applies the parameter


def _best_round(config: BoostConfig, scores: Sequence[float]) -> int:
    return scores.index(max(scores) if config.ranks else min(scores))


def _stalled(config: BoostConfig, scores: Sequence[float]) -> bool:
    """Return whether none of the last ``patience`` scores is the best."""
    return bool(scores) and len(scores) - 1 - _best_round(config, scores) >= config.patience


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
