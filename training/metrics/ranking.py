"""Offline metrics of ranking models. Ties get half credit: equal scores are no ranking."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from scipy.special import entr
from sklearn import metrics

Array: TypeAlias = npt.NDArray[Any]


def ranking_report(labels: Array, probs: Array, groups: Array | None = None) -> dict[str, float]:
    """Measure predicted probabilities against what happened.

    Args:
        labels: What happened, 0 or 1, [B]; both must occur.
        probs: Predicted probabilities, [B].
        groups: Whose list each row belongs to, such as the user id, [B]; needed for gauc only.

    Returns:
        auc, logloss, normalized_entropy, ece, calibration_ratio and, with groups, gauc.
    """
    report = {
        "auc": auc(labels, probs),
        "logloss": logloss(labels, probs),
        "normalized_entropy": normalized_entropy(labels, probs),
        "ece": ece(labels, probs),
        "calibration_ratio": calibration_ratio(labels, probs),
    }
    if groups is not None and not np.isnan(of_groups := gauc(labels, probs, groups)):
        report["gauc"] = of_groups
    return report


def auc(labels: Array, scores: Array) -> float:
    """Compute the chance that a positive scores above a negative; .5 is no better than guessing."""
    return float(metrics.roc_auc_score(labels, scores))


def logloss(labels: Array, probs: Array) -> float:
    """Compute the mean negative log-likelihood of the labels, in nats."""
    return float(metrics.log_loss(labels, probs, labels=[0, 1]))


def normalized_entropy(labels: Array, probs: Array) -> float:
    """Compute the logloss relative to that of always predicting the base rate (He et al. 2014).

    Below 1 the probabilities are worth more than the base rate alone.
    """
    rate = np.mean(labels, dtype=np.float64)
    return logloss(labels, probs) / float(entr(rate) + entr(1 - rate))


def gauc(labels: Array, scores: Array, groups: Array) -> float:
    """Compute the mean AUC within groups, weighted by their rows.

    Args:
        labels: 0 or 1, [B].
        scores: Higher means sooner, [B].
        groups: Group of each row, [B]; a group of one class only has no AUC and is left out.

    Returns:
        The weighted mean in [0, 1]; NaN when no group has both classes.
    """
    table = pd.DataFrame({"group": groups, "positive": labels})
    table["positive_rank"] = pd.Series(scores).groupby(groups).rank() * labels
    by_group = table.groupby("group")
    rows, positives = by_group.size(), by_group["positive"].sum()
    # Mann-Whitney: what the positives' ranks sum to above the least that they could.
    wins = by_group["positive_rank"].sum() - positives * (positives + 1) / 2
    pairs = positives * (rows - positives)
    mixed = pairs > 0
    if not mixed.any():
        return float("nan")
    return float(np.average(wins[mixed] / pairs[mixed], weights=rows[mixed]))


class CalibrationBins(NamedTuple):
    """Rows in bins of about equal size by predicted probability; each array is [bins]."""

    predicted: Array
    actual: Array
    rows: Array


def calibration_bins(labels: Array, probs: Array, bins: int = 10) -> CalibrationBins:
    """Compare predicted and actual rate along the range of predictions.

    Args:
        labels: 0 or 1, [B].
        probs: Predicted probabilities, [B].
        bins: Number of bins; equal predictions share a bin, so there may be fewer.

    Returns:
        The mean prediction, the mean label and the number of rows of each bin that has rows.
    """
    edges = np.quantile(probs, np.arange(1, bins) / bins)
    _, index, rows = np.unique(
        np.searchsorted(edges, probs, side="right"), return_inverse=True, return_counts=True
    )
    predicted = np.bincount(index, weights=probs) / rows
    actual = np.bincount(index, weights=labels) / rows
    return CalibrationBins(predicted, actual, rows)


def ece(labels: Array, probs: Array) -> float:
    """Compute the expected calibration error: the mean gap of predicted and actual rate."""
    predicted, actual, rows = calibration_bins(labels, probs)
    return float(np.average(np.abs(predicted - actual), weights=rows))


def calibration_ratio(labels: Array, probs: Array) -> float:
    """Compute the predicted number of positives over the actual one; above 1 is too hopeful."""
    return float(np.sum(probs, dtype=np.float64) / np.sum(labels))


def spearman(values: Array, scores: Array) -> float:
    """Compute the rank correlation, in [-1, 1], of scores with the values that they order."""
    return float(stats.spearmanr(values, scores).statistic)


def top_share(values: Array, scores: Array, fraction: float = 0.1) -> float:
    """Compute the share of all value that the best-scored rows hold.

    Args:
        values: What a row is worth, 0 or more, [B].
        scores: Higher means sooner, [B]; rows tied at the cut count in part.
        fraction: Part of the rows that is taken as the top.

    Returns:
        The share in [0, 1]; `fraction` for scores that know nothing.
    """
    size = fraction * len(scores)
    cut = np.sort(scores)[::-1][int(np.ceil(size)) - 1]
    above, tied = scores > cut, scores == cut
    top = values[above].sum() + values[tied].mean() * (size - above.sum())
    return float(top / values.sum())
