"""Offline metrics of ranking models. Ties get half credit, since equal scores do not rank."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from scipy.special import entr

Array: TypeAlias = npt.NDArray[Any]


def ranking_report(labels: Array, probs: Array, groups: Array | None = None) -> dict[str, float]:
    """Compare predicted probabilities with the labels.

    Args:
        labels: 0 or 1, [B]; both must occur.
        probs: Predicted probabilities, [B].
        groups: Key of the list that each row belongs to, such as the user id, [B]; for gauc only.

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
    if groups is not None and not np.isnan(grouped := gauc(labels, probs, groups)):
        report["gauc"] = grouped
    return report


def list_report(labels: Array, scores: Array, groups: Array) -> dict[str, float]:
    """Compare the order of scores within groups with the relevance of the rows.

    Args:
        labels: Relevance, 0 or more, [B]; both 0 and another must occur.
        scores: Scores, [B]; higher ranks first.
        groups: Group of each row, [B].

    Returns:
        ndcg_at_10, auc and, if a group has relevant rows and others, gauc; the last two tell
        relevant rows from others.
    """
    relevant = labels > 0
    report = {"ndcg_at_10": ndcg(labels, scores, groups), "auc": auc(relevant, scores)}
    if not np.isnan(grouped := gauc(relevant, scores, groups)):
        report["gauc"] = grouped
    return report


def ndcg(labels: Array, scores: Array, groups: Array, k: int = 10) -> float:
    """Compute the mean NDCG at k of the groups (Jarvelin and Kekalainen, 2002).

    Args:
        labels: Relevance, 0 or more, [B]; the gain of a row is 2 ^ relevance - 1.
        scores: Scores, [B]; higher ranks first, and tied rows share their mean gain.
        groups: Group of each row, [B]; one without relevant rows has no NDCG and is skipped.
        k: Number of rows from the top that count.

    Returns:
        The mean in [0, 1]; NaN if no row is relevant.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    gains = np.exp2(np.asarray(labels, dtype=np.float64)) - 1
    table = pd.DataFrame({"group": codes, "score": scores, "gain": gains})
    table["gain"] = table.groupby(["group", "score"])["gain"].transform("mean")
    sizes = np.bincount(codes)
    position = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    discounts = np.where(position < k, 1 / np.log2(position + 2), 0)
    ranked = table["gain"].to_numpy()[np.lexsort((-table["score"].to_numpy(), codes))]
    ideal = gains[np.lexsort((-gains, codes))]
    order = np.repeat(np.arange(len(sizes)), sizes)
    dcg, best = (np.bincount(order, weights=g * discounts) for g in (ranked, ideal))
    return float(np.mean(dcg[best > 0] / best[best > 0])) if best.any() else float("nan")


def auc(labels: Array, scores: Array) -> float:
    """Compute the probability that a positive scores above a negative; 0.5 is chance.

    The Mann-Whitney U statistic; scikit-learn gives the same number several times slower, and the
    gate's bootstrap asks for it thousands of times.
    """
    positive = np.asarray(labels) > 0
    n_positive = np.count_nonzero(positive)
    pairs = n_positive * (len(positive) - n_positive)
    if not pairs:
        return float("nan")
    ranks = stats.rankdata(scores)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / pairs)


def logloss(labels: Array, probs: Array) -> float:
    """Compute the mean negative log-likelihood of the labels, in nats.

    Probabilities of 0 and 1 are clipped by the epsilon of their type, as scikit-learn does.
    """
    probs = np.asarray(probs)
    epsilon = np.finfo(probs.dtype).eps
    clipped = np.clip(probs.astype(np.float64), epsilon, 1 - epsilon)
    return float(-np.log(np.where(np.asarray(labels) > 0, clipped, 1 - clipped)).mean())


def normalized_entropy(labels: Array, probs: Array) -> float:
    """Compute the logloss relative to that of always predicting the base rate (He et al. 2014).

    Below 1, the probabilities are better than the base rate.
    """
    rate = np.mean(labels, dtype=np.float64)
    return logloss(labels, probs) / float(entr(rate) + entr(1 - rate))


def gauc(labels: Array, scores: Array, groups: Array) -> float:
    """Compute the mean AUC within groups, weighted by their rows.

    Args:
        labels: 0 or 1, [B].
        scores: Scores, [B]; higher ranks first.
        groups: Group of each row, [B]; a group with a single class has no AUC and is skipped.

    Returns:
        The weighted mean in [0, 1]; NaN if no group has both classes.
    """
    table = pd.DataFrame({"group": groups, "positive": labels})
    table["positive_rank"] = pd.Series(scores).groupby(groups).rank() * labels
    by_group = table.groupby("group")
    rows, positives = by_group.size(), by_group["positive"].sum()
    # Mann-Whitney U: the sum of the positives' ranks, less the smallest possible sum.
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
    """Compare predicted and actual rates along the range of predictions.

    Args:
        labels: 0 or 1, [B].
        probs: Predicted probabilities, [B].
        bins: Number of bins. Equal predictions share a bin, so fewer may have rows.

    Returns:
        Mean prediction, mean label and number of rows of each bin that has rows.
    """
    edges = np.quantile(probs, np.arange(1, bins) / bins)
    _, index, rows = np.unique(
        np.searchsorted(edges, probs, side="right"), return_inverse=True, return_counts=True
    )
    predicted = np.bincount(index, weights=probs) / rows
    actual = np.bincount(index, weights=labels) / rows
    return CalibrationBins(predicted, actual, rows)


def ece(labels: Array, probs: Array) -> float:
    """Compute the expected calibration error: the mean gap between predicted and actual rate."""
    predicted, actual, rows = calibration_bins(labels, probs)
    return float(np.average(np.abs(predicted - actual), weights=rows))


def calibration_ratio(labels: Array, probs: Array) -> float:
    """Compute the predicted over the actual number of positives; above 1 overestimates."""
    return float(np.sum(probs, dtype=np.float64) / np.sum(labels))


def spearman(values: Array, scores: Array) -> float:
    """Compute the rank correlation of scores and values, in [-1, 1]."""
    return float(stats.spearmanr(values, scores).statistic)


def top_share(values: Array, scores: Array, fraction: float = 0.1) -> float:
    """Compute the share of the total value that the best-scored rows hold.

    Args:
        values: Value of each row, 0 or more, [B].
        scores: Scores, [B]; higher ranks first, and rows tied at the cut count in part.
        fraction: Fraction of the rows that counts as the top.

    Returns:
        The share in [0, 1]; ``fraction`` for constant scores.
    """
    size = fraction * len(scores)
    cut = np.sort(scores)[::-1][int(np.ceil(size)) - 1]
    above, tied = scores > cut, scores == cut
    top = values[above].sum() + values[tied].mean() * (size - above.sum())
    return float(top / values.sum())
