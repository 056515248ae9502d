"""Compare the predictions of two versions for the same requests."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson
from scipy.stats import kendalltau

from handlers.signature import close
from serving.replay import Replay

TOP_K = 10

Ranking = dict[Hashable, float]


@dataclass(frozen=True)
class Distance:
    """The distance between the predictions of two versions; NaN where the requests do not show it.

    A ranking orders the rows of a request by score, or all rows if no request has several. The
    spaces of two embedding models cannot be compared, so their rows are ranked by the inner product
    with the first row. A recall model ranks its items.

    Attributes:
        mean_difference: Mean absolute difference of the scores.
        max_difference: Largest absolute difference.
        top_k_overlap: Share of the first version's top 10 (of fewer than 20, its first half) that
            is in the other version's as well; the mean over the rankings.
        kendall_tau: 1 for the same order, -1 for the reverse; the mean over the rankings.
    """

    mean_difference: float
    max_difference: float
    top_k_overlap: float
    kendall_tau: float

    @classmethod
    def between(cls, old: Replay, new: Replay, output: str) -> Distance:
        """Compare the requests that both versions answered, and the tasks that both have.

        Args:
            old: Replay of one version.
            new: Replay of the other.
            output: Type of a prediction: ``number``, ``vector`` or ``object``.
        """
        differences, overlaps, taus = [], [], []
        for before, after in _row_pairs(old, new, output):
            rankings, others = dict(_rankings(before)), dict(_rankings(after))
            for a, b in ((rankings[name], others[name]) for name in rankings if name in others):
                common = sorted(a.keys() & b.keys(), key=str)
                scores = np.array([[a[key], b[key]] for key in common]).reshape(-1, 2)
                differences += np.abs(scores[:, 0] - scores[:, 1]).tolist()
                k = min(TOP_K, max(1, len(a) // 2))
                if a:
                    overlaps.append(len(_top(a, k) & _top(b, k)) / k)
                if len(set(scores[:, 0])) > 1 and len(set(scores[:, 1])) > 1:
                    taus.append(float(kendalltau(scores[:, 0], scores[:, 1]).statistic))
        return cls(
            mean_difference=_mean(differences),
            max_difference=max(differences, default=np.nan),
            top_k_overlap=_mean(overlaps),
            kendall_tau=_mean(taus),
        )


def lost_distinctions(old: Replay, new: Replay, output: str) -> str | None:
    """Find out whether the new version gives one prediction to what the old one tells apart.

    Args:
        old: Replay of the version that serves.
        new: Replay of the other.
        output: Type of a prediction: ``number``, ``vector`` or ``object``.

    Returns:
        A sentence if that is so in most requests of several rows, or, if there are none, in all
        rows of all requests.
    """
    told_apart, lost, example = 0, 0, None
    for before, after in _row_pairs(old, new, output):
        for rows, others in _outputs(before, after):
            if not _all_close(rows):
                told_apart += 1
                if _all_close(others):
                    lost += 1
                    example = others[0]
    if lost <= told_apart / 2:
        return None
    return (
        f"rows that the old version tells apart get the same prediction, such as "
        f"{orjson.dumps(example).decode()[:80]}, in {lost} of {told_apart} cases"
    )


def _row_pairs(old: Replay, new: Replay, output: str) -> list[tuple[list[Any], list[Any]]]:
    """Return the rows' predictions in each request of several rows that both versions answered.

    If there is no such request, all rows count as one.
    """
    pairs = [
        (_rows(a, output), _rows(b, output))
        for a, b in zip(old.predictions, new.predictions, strict=True)
        if a is not None and b is not None
    ]
    several = [pair for pair in pairs if len(pair[0]) > 1]
    return several or [(list(chain(*(a for a, _ in pairs))), list(chain(*(b for _, b in pairs))))]


def _outputs(before: list[Any], after: list[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield the values of each task that both versions have; of other models, the rows."""
    both = (*before, *after)
    if not all(isinstance(row, dict) and "item_ids" not in row for row in both):
        yield before, after
        return
    for task in set.intersection(*map(set, both)) if both else ():
        yield [row[task] for row in before], [row[task] for row in after]


def _all_close(rows: list[Any]) -> bool:
    return all(close(rows[0], row) for row in rows[1:])


def _rows(predictions: list[Any], output: str) -> list[Any]:
    """Return one prediction per row: a single row's may be the embedding itself."""
    flat = output == "vector" and not isinstance(predictions[0], list)
    return [predictions] if flat else predictions


def _rankings(rows: list[Any]) -> Iterator[tuple[Hashable, Ranking]]:
    """Yield rankings by name: of the rows, or of each row's items."""
    if not rows:
        return
    first = rows[0]
    if isinstance(first, list):
        yield "vectors", {i: float(np.dot(row, first)) for i, row in enumerate(rows[1:])}
    elif not isinstance(first, dict):
        yield "numbers", dict(enumerate(rows))
    elif "item_ids" in first:
        for i, row in enumerate(rows):
            yield i, dict(zip(row["item_ids"], row["scores"], strict=True))
    else:
        for task in first:
            yield task, {i: row[task] for i, row in enumerate(rows)}


def _top(ranking: Ranking, k: int) -> set[Hashable]:
    return set(sorted(ranking, key=lambda key: -ranking[key])[:k])


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
