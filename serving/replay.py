"""Send the same requests to two versions of a served model, and compare their predictions."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from scipy.stats import kendalltau

from handlers.errors import UserError
from serving.client import OK, TorchServe, TorchServeError

TOP_K = 10

Ranking = dict[Hashable, float]


def read_requests(path: Path) -> list[bytes]:
    """Read JSON lines, each the body of a request.

    Raises:
        UserError: If there is no line, or a line is not such a body.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            is_body = "data" in orjson.loads(line)
        except (orjson.JSONDecodeError, TypeError):
            is_body = False
        if not is_body:
            got = line[:40].decode(errors="replace")
            raise UserError(f'{path}:{number}: expected {{"data": [...]}}, got {got!r}')
    if not lines:
        raise UserError(f"{path}: expected one request per line, got an empty file")
    return lines


@dataclass
class Replay:
    """The outcome of the requests to one version.

    Attributes:
        predictions: Predictions of each request; None for one that was not answered with 200.
        latencies_ms: Latency of each request.
        errors: Status and body of the requests that were not answered with 200.
    """

    predictions: list[Any] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile of the latencies."""
        return float(np.percentile(self.latencies_ms, percent))

    async def send(
        self, torchserve: TorchServe, model: str, body: bytes, version: str | None = None
    ) -> None:
        """Send one more request; to the default version unless one is named."""
        start = time.perf_counter()
        try:
            status, answer = await torchserve.send(model, body, version)
        except TorchServeError as error:
            status, answer = error.status, str(error).encode()
        self.latencies_ms.append((time.perf_counter() - start) * 1e3)
        predictions = None
        if status == OK:
            with suppress(orjson.JSONDecodeError, KeyError, TypeError):  # not from our handlers
                predictions = orjson.loads(answer)["predictions"]
        self.predictions.append(predictions)
        if predictions is None:
            self.errors.append(f"{status}: {answer.decode(errors='replace')[:300]}")


async def replay(
    torchserve: TorchServe, model: str, versions: Sequence[str], bodies: Sequence[bytes]
) -> list[Replay]:
    """Send every request to each version in turn, so that all have the same load."""
    replays = [Replay() for _ in versions]
    for body in bodies:
        for version, done in zip(versions, replays, strict=True):
            await done.send(torchserve, model, body, version)
    return replays


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
        pairs = [
            (_rows(a, output), _rows(b, output))
            for a, b in zip(old.predictions, new.predictions, strict=True)
            if a is not None and b is not None
        ]
        several = [pair for pair in pairs if len(pair[0]) > 1]
        if not several:
            several = [(list(chain(*(a for a, _ in pairs))), list(chain(*(b for _, b in pairs))))]
        differences, overlaps, taus = [], [], []
        for before, after in several:
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
