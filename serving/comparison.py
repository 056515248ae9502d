"""Replay requests to the version that serves and to a new one, and hold the new one to limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from serving.distance import TOP_K, Distance, lost_distinctions
from serving.replay import Replay
from serving.rollout import RolloutError


@dataclass(frozen=True)
class Limits:
    """What a new version is held to.

    Attributes:
        max_p99_ms: Milliseconds that 99% of the requests must stay below.
        max_error_share: Share of the requests in the watch that may fail, take longer, or be
            answered otherwise than in the replay.
        allow_contract_change: Whether requests that the old version answers may fail, and rows that
            it tells apart may get the same prediction.
    """

    max_p99_ms: float
    max_error_share: float
    allow_contract_change: bool

    def is_hopeless(self, replays: Sequence[Replay], n_requests: int) -> bool:
        """Whether the replays so far exceed a limit, whatever the rest of the requests brings."""
        n_slow = sum(ms > self.max_p99_ms for ms in replays[-1].latencies_ms)
        return n_slow > 1 + n_requests // 100 or self._is_lost(replays, -1)

    def check(self, replays: Sequence[Replay], output: str) -> None:
        """Compare the new version's replay with the limits and with the old version's.

        Args:
            replays: Replays of the old version, if there is one, and of the new one.
            output: Type of the new version's predictions.

        Raises:
            RolloutError: If a limit is exceeded.
        """
        new = replays[-1]
        n = len(new.predictions)
        lost = sum(self._is_lost(replays, i) for i in range(n))
        if lost or len(new.errors) == n:
            but = ", which the old version answers" if len(replays) == 2 and lost else ""
            raise RolloutError(
                f"{lost or n} of {n} requests were not answered{but}: {new.errors[-1]}"
            )
        if (p99_ms := new.percentile_ms(99)) > self.max_p99_ms:
            raise RolloutError(
                f"p99: expected at most {self.max_p99_ms:g} ms (--max-p99-ms), got {p99_ms:.0f} ms"
            )
        if len(replays) == 1 or self.allow_contract_change:
            return
        if problem := lost_distinctions(replays[0], new, output):
            raise RolloutError(problem)

    def _is_lost(self, replays: Sequence[Replay], i: int) -> bool:
        """Whether request i is not answered, and must be."""
        if replays[-1].predictions[i] is not None:
            return False
        return len(replays) == 1 or (
            replays[0].predictions[i] is not None and not self.allow_contract_change
        )


def comparison_table(
    title: str,
    model: str,
    versions: Sequence[str],
    replays: Sequence[Replay],
    output: str,
    worker_bytes: Sequence[int],
) -> Table:
    """Compare one or two versions as a table.

    Args:
        title: Title of the table.
        model: Name of the model.
        versions: The old version, if there is one, and the new one.
        replays: Their replays.
        output: Type of the new version's predictions.
        worker_bytes: Memory of the largest worker of each; 0 if it is not known.
    """
    n = len(replays[0].latencies_ms)
    table = Table(f"{model}, {n} requests", *versions, box=box.SIMPLE_HEAD, title=title)
    table.add_row("not answered", *(str(len(each.errors)) for each in replays))
    for percent in (50, 99):
        latencies = (f"{each.percentile_ms(percent):.1f}" for each in replays)
        table.add_row(f"p{percent} ms", *latencies)
    if any(worker_bytes):
        table.add_row("memory of a worker, MB", *(f"{size / 1e6:,.0f}" for size in worker_bytes))
    if len(replays) == 2:
        distance = Distance.between(replays[0], replays[1], output)
        table.add_row("score difference, mean", "", f"{distance.mean_difference:.5f}")
        table.add_row("score difference, max", "", f"{distance.max_difference:.5f}")
        table.add_row(f"top-{TOP_K} overlap", "", f"{distance.top_k_overlap:.3f}")
        table.add_row("Kendall tau", "", f"{distance.kendall_tau:.3f}")
    return table
