"""Offline metrics of retrieval: the rank of the chosen item among all candidates."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]


def expected_ranks(
    scores: Scores, targets: Indices, excluded: npt.NDArray[np.bool_] | None = None
) -> Ranks:
    """Rank each row's target, 1 is best; ties count as the mean over all their orders.

    A model whose scores are all equal therefore ranks by chance, not first.

    Args:
        scores: Score of every candidate, [B, N].
        targets: Index of the right candidate, int64 [B].
        excluded: Candidates that do not compete, such as a row's history, bool [B, N]; a target
            always competes.

    Returns:
        Ranks from 1 to N, float64 [B].
    """
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    better, equal = scores > own, scores == own
    if excluded is not None:
        better &= ~excluded
        equal &= ~excluded
    np.put_along_axis(equal, targets[:, None], False, axis=1)
    ranks: Ranks = 1.0 + better.sum(axis=1) + equal.sum(axis=1) / 2
    return ranks


def retrieval_report(ranks: Ranks, ks: Sequence[int] = (10,)) -> dict[str, float]:
    """Compute hit rate, NDCG and MRR for one right item per row.

    Args:
        ranks: Ranks from :func:`expected_ranks`, [B].
        ks: Lengths of the lists to measure.

    Returns:
        ``hr_at_k``, which equals recall_at_k as there is one right item, ``ndcg_at_k`` and ``mrr``.
    """
    report = {}
    for k in ks:
        hits = ranks <= k
        report[f"hr_at_{k}"] = float(hits.mean())
        report[f"ndcg_at_{k}"] = float((hits / np.log2(ranks + 1)).mean())
    report["mrr"] = float((1 / ranks).mean())
    return report
