"""Weights of the rows of a ranking data set, and the sample of its negatives.

Shapes: B rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from training.data.splits import Splits

RowWeights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WeightFlags:
    """How much the rows count in the training loss, and in the validation loss.

    Attributes:
        weight_column: Column of numbers above 0, the weights of the rows. It is no feature.
        negative_sampling_rate: Share of the training rows with label 0 to keep. Those kept count
            for those dropped, so predictions stay calibrated. Other splits stay whole.
        positive_weight: Weight of the rows with label 1. Above 1, predictions rise: they are no
            longer probabilities.
    """

    weight_column: str = ""
    negative_sampling_rate: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    positive_weight: Annotated[float, Field(ge=1e-6, allow_inf_nan=False)] = 1.0


def sample_negatives(train: pd.DataFrame, label: str, rate: float, seed: int) -> pd.DataFrame:
    """Drop all but a share of the rows with label 0, and at least one of them.

    Args:
        train: The training split, which has both labels.
        label: Name of the label's column.
        rate: Share of the rows with label 0 that stay.
        seed: Seed of the draw.

    Returns:
        The rows that stay, in their order.
    """
    if rate == 1:
        return train
    kept = (train[label] != 0).to_numpy(copy=True)
    negatives = np.flatnonzero(~kept)
    n_kept = max(1, round(rate * len(negatives)))
    kept[np.random.default_rng(seed).choice(negatives, n_kept, replace=False)] = True
    return train[kept]


def row_weights(
    frame: pd.DataFrame, label: str, flags: WeightFlags, n_negatives: int | None = None
) -> RowWeights:
    """Compute the weights of the rows of a split, float32 [B]; their mean is 1.

    Args:
        frame: Rows with the label and the weight column.
        label: Name of the label's column.
        flags: The weight column and the weight of positives.
        n_negatives: Number of rows with label 0 that those in ``frame`` stand for; by default
            their own number.
    """
    negative = (frame[label] == 0).to_numpy()
    weights = np.where(negative, 1.0, flags.positive_weight)
    if n_negatives is not None:
        weights[negative] *= n_negatives / negative.sum()
    if flags.weight_column:
        weights *= frame[flags.weight_column].to_numpy(np.float64)
    normalized: RowWeights = (weights / weights.mean()).astype(np.float32)
    return normalized


def weight_problems(splits: Splits, column: str) -> Iterator[str]:
    """Yield a line for each split whose weights are not all numbers above 0."""
    for split, frame in splits.items():
        if column not in frame:  # absent or wrong cells, which reading reports
            continue
        weights = frame[column]
        problem = ""
        if weights.hasnans:
            problem = f"{weights.isna().sum()} of {len(weights)} rows are empty"
        elif not (allowed := np.isfinite(weights) & (weights > 0)).all():
            problem = f"got {weights[~allowed].iloc[0]:g}"
        if problem:
            yield f"{split} split, column {column}: expected a weight above 0, {problem}"
