"""Offline metrics of retrieval: where does the item that was chosen stand among all of them?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]


def expected_ranks(
    scores: Scores, targets: Indices, excluded: npt.NDArray[np.bool_] | None = None
) -> Ranks:
    """Rank of each row's target, 1 the best, on average over the orders of equal scores.

    A model whose scores are all equal so gets the rank of chance, not the first one.

    Args:
        scores: Of every candidate, [B, N].
        targets: Index of the right one, int64 [B].
        excluded: Candidates that do not compete, such as a row's history, bool [B, N]; a target
            always competes.

    Returns:
        float64 [B], from 1 to N.
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
    """Hit rate, NDCG and MRR of one right item a row.

    Args:
        ranks: As :func:`expected_ranks` gives them, [B].
        ks: Lengths of the lists that are looked at.

    Returns:
        ``hr_at_k`` (the same as recall_at_k: there is one right item), ``ndcg_at_k`` and ``mrr``.
    """
    report = {}
    for k in ks:
        hits = ranks <= k
        report[f"hr_at_{k}"] = float(hits.mean())
        report[f"ndcg_at_{k}"] = float((hits / np.log2(ranks + 1)).mean())
    report["mrr"] = float((1 / ranks).mean())
    return report
