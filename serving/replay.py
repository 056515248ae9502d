"""Send the same requests to versions of a served model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tqdm import tqdm

from handlers.errors import UserError
from serving.client import OK, TorchServe, TorchServeError


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
            if _holds_null(predictions):  # what becomes of NaN in JSON
                predictions = None
        self.predictions.append(predictions)
        if predictions is None:
            self.errors.append(f"{status}: {answer.decode(errors='replace')[:300]}")


async def replay(
    torchserve: TorchServe,
    model: str,
    versions: Sequence[str],
    bodies: Sequence[bytes],
    is_hopeless: Callable[[Sequence[Replay]], bool] = lambda _: False,
) -> list[Replay]:
    """Send every request to each version in turn, so that all have the same load.

    Args:
        torchserve: Client of the server.
        model: Name of the model.
        versions: Versions to send to.
        bodies: The requests.
        is_hopeless: Tells from the replays so far whether the rest can be left out.

    Returns:
        The replay of each version.
    """
    replays = [Replay() for _ in versions]
    for body in tqdm(bodies, desc="replaying", unit="request", leave=False, disable=None):
        for version, done in zip(versions, replays, strict=True):
            await done.send(torchserve, model, body, version)
        if is_hopeless(replays):
            break
    return replays


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    if isinstance(value, list):
        return any(map(_holds_null, value))
    return value is None
