"""Helpers of the loop that boosts trees."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xgboost as xgb
from tqdm import tqdm

Array = npt.NDArray[np.float32]


class MatrixBatches(xgb.DataIter):
    """Passes a matrix to XGBoost in batches, which bounds the memory of the quantile sketch.

    Args:
        matrix: Features, float32 [B, C].
        labels: Labels, float32 [B].
        batch_size: Rows of a batch.
    """

    def __init__(self, matrix: Array, labels: Array, batch_size: int) -> None:
        super().__init__()
        self._batches = [
            (matrix[start : start + batch_size], labels[start : start + batch_size])
            for start in range(0, len(matrix), batch_size)
        ]
        self._next = 0

    def next(self, input_data: Any) -> bool:
        """Pass the next batch on; returns False after the last one."""
        if self._next == len(self._batches):
            return False
        matrix, labels = self._batches[self._next]
        input_data(data=matrix, label=labels)
        self._next += 1
        return True

    def reset(self) -> None:
        """Start again from the first batch."""
        self._next = 0


class TreeProgress(xgb.callback.TrainingCallback):
    """Progress bar over the rounds, shown on a terminal only."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        self._bar = tqdm(total=rounds, unit="tree", disable=None, leave=False)

    def __enter__(self) -> Self:
        """Start the bar."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.close()

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Advance the bar by one tree; never stops the training."""
        self._bar.update()
        self._bar.set_description(f"valid loss {evals_log['valid']['logloss'][-1]:.4f}")
        return False
