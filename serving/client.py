"""Client of TorchServe's predictions and of its management API."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from opentelemetry import propagate, trace

from handlers.errors import UserError

OK = 200
NOT_FOUND = 404
# More callers than these wait for a connection instead of filling TorchServe's queues.
MAX_CONNECTIONS = 256
MAX_BODY_BYTES = 8 << 20  # as TorchServe's max_request_size
# The types of error by which our handlers tell a caller what is wrong with the request.
CALLERS_FAULT = ("InvalidRequest", "TooManyRows")
REQUEST_ID = "X-Request-ID"

# Goes on to TorchServe, whose workers log it when a model fails; empty for requests of our own.
request_id_of_caller = ContextVar("request_id_of_caller", default="")
tracer = trace.get_tracer(__name__)  # records nothing until a provider is set


class TorchServeError(UserError):
    """TorchServe did not do what it was asked.

    Args:
        status: The HTTP status that the sidecar's caller gets.
        message: Says why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ModelVersion:
    """A registered version of a model.

    Attributes:
        version: As in the URL.
        workers: State of each worker.
        pids: Process of each worker by the worker's id; -1 until it runs.
        min_workers: Workers that it should have.
        pending_requests: Requests in its queue, without those at the workers.
    """

    version: str
    workers: tuple[str, ...]
    pids: Mapping[str, int]
    min_workers: int
    pending_requests: int

    @property
    def ready_workers(self) -> int:
        """Workers that have loaded the model."""
        return self.workers.count("READY")

    @property
    def ready(self) -> bool:
        """Whether it has all its workers."""
        return self.ready_workers >= max(self.min_workers, 1)

    def __str__(self) -> str:
        """Its workers in words: ``1/2 READY, 1 UNLOADING``."""
        others = Counter(state for state in self.workers if state != "READY")
        states = [f"{self.ready_workers}/{self.min_workers} READY"]
        return ", ".join(states + [f"{n} {state}" for state, n in others.items()])


class TorchServe:
    """TorchServe over pooled connections; an async context manager.

    Args:
        inference_url: Of the predictions.
        management_url: Of the management API.
        key_file: TorchServe's ``key_file.json`` when it asks for tokens.
        timeout_s: Seconds until a request that is not answered fails.
    """

    _session: aiohttp.ClientSession

    def __init__(
        self, inference_url: str, management_url: str, key_file: Path | None, timeout_s: float
    ) -> None:
        self.inference_url = inference_url
        self.management_url = management_url
        self._key_file = key_file
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        """Open the pool, in the event loop that uses it."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pool."""
        await self._session.close()

    # Inference

    async def predict(self, model: str, rows: list[Any]) -> list[Any]:
        """The predictions of a model's default version.

        Raises:
            TorchServeError: 400 or 413 with the model's own message about the rows; 503 if the
                model cannot be asked; 504 if it takes too long.
        """
        try:
            body = orjson.dumps({"data": rows})
        except orjson.JSONEncodeError as error:  # it parsed, so only its depth can be wrong
            raise TorchServeError(400, f"body: expected less nesting, got: {error}") from error
        if len(body) > MAX_BODY_BYTES:  # as the caller wrote it, it may have been shorter
            raise TorchServeError(
                413, f"body: expected at most {MAX_BODY_BYTES} bytes, got {len(body)}; split it"
            )
        status, answer = await self.send(model, body)
        if status == OK:
            predictions: list[Any] = orjson.loads(answer)["predictions"]
            return predictions
        kind, message = _reason(answer)
        if kind in CALLERS_FAULT:
            raise TorchServeError(status, message)
        raise TorchServeError(503, f"{model}: TorchServe answered {status}: {message}")

    async def send(self, model: str, body: bytes, version: str | None = None) -> tuple[int, bytes]:
        """Send a body to a model as it is.

        Args:
            model: Its name.
            body: JSON.
            version: None for the default one.

        Returns:
            TorchServe's status and body.

        Raises:
            TorchServeError: If there is no answer.
        """
        path = f"/predictions/{model}" if version is None else f"/predictions/{model}/{version}"
        return await self._call("POST", self.inference_url + path, "inference", body)

    # Management

    async def default_version(self, model: str) -> ModelVersion | None:
        """The version that answers when the URL names none; None if the model is not loaded."""
        versions = await self._describe(f"/models/{model}")
        return versions[0] if versions else None

    async def versions(self, model: str) -> list[ModelVersion]:
        """Every version of a model, the default one first; none if it is not loaded."""
        default, versions = await asyncio.gather(
            self.default_version(model), self._describe(f"/models/{model}/all")
        )
        return sorted(versions, key=lambda v: default is None or v.version != default.version)

    async def version(self, model: str, version: str) -> ModelVersion | None:
        """One version of a model; None if it is not loaded."""
        versions = await self._describe(f"/models/{model}/{version}")
        return versions[0] if versions else None

    async def signature(self, model: str) -> dict[str, Any]:
        """What a default version's archive says of itself; empty if the model is not loaded."""
        url = f"{self.management_url}/models/{model}?customized=true"
        status, answer = await self._call("GET", url, "management")
        told = orjson.loads(answer)[0] if status == OK else {}
        signature: dict[str, Any] = told.get("customizedMetadata") or {}
        return signature

    async def register(self, archive: str) -> None:
        """Begin to load an archive of the model store, with the workers that it asks for.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        await self._manage("POST", f"/models?url={archive}&synchronous=false")

    async def set_default(self, model: str, version: str) -> None:
        """Let a version answer when the URL names none.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        await self._manage("PUT", f"/models/{model}/{version}/set-default")

    async def unregister(self, model: str, version: str) -> None:
        """Remove a version at once: requests in flight are never answered.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        await self._manage("DELETE", f"/models/{model}/{version}")

    async def _describe(self, path: str) -> list[ModelVersion]:
        url = self.management_url + path
        status, answer = await self._call("GET", url, "management")
        if status == NOT_FOUND:
            return []
        if status != OK:
            raise TorchServeError(503, f"{url}: TorchServe answered {status}: {_reason(answer)[1]}")
        return [_model_version(told) for told in orjson.loads(answer)]

    async def _manage(self, method: str, path: str) -> None:
        url = self.management_url + path
        status, answer = await self._call(method, url, "management")
        if status >= 400:
            message = f"{method} {url}: TorchServe answered {status}: {_reason(answer)[1]}"
            raise TorchServeError(503, message)

    async def _call(
        self,
        method: str,
        url: str,
        key: Literal["inference", "management"],
        body: bytes | None = None,
    ) -> tuple[int, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        if request_id := request_id_of_caller.get():
            headers[REQUEST_ID] = request_id
        if self._key_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._key_file, key)}"
        try:
            with _traced(f"{method} {urlsplit(url).path}", headers):
                async with self._session.request(
                    method, url, data=body, headers=headers
                ) as response:
                    return response.status, await response.read()
        except TimeoutError as error:
            expected = f"expected an answer within {self._timeout_s:g} s"
            raise TorchServeError(504, f"{url}: {expected}, got none") from error
        except aiohttp.ClientError as error:
            raise TorchServeError(503, f"{url}: TorchServe is unreachable: {error}") from error


@contextmanager
def _traced(name: str, headers: dict[str, str]) -> Iterator[None]:
    """A span in the trace of the caller's request, if it is traced, which the headers carry on."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT):
        propagate.inject(headers)
        yield


def _token(key_file: Path, key: str) -> str:
    """Read each time: a TorchServe that was started again has other keys."""
    try:
        return str(orjson.loads(key_file.read_bytes())[key]["key"])
    except (OSError, ValueError, LookupError) as error:
        raise TorchServeError(
            503, f"{key_file}: expected TorchServe's tokens, got: {error!r}; is it running?"
        ) from error


def _reason(answer: bytes) -> tuple[str, str]:
    """Type and message of an error body."""
    try:
        told = orjson.loads(answer)
        return str(told["type"]), str(told["message"])
    except (ValueError, LookupError, TypeError):
        return "", answer.decode(errors="replace")


def _model_version(told: dict[str, Any]) -> ModelVersion:
    return ModelVersion(
        version=told["modelVersion"],
        workers=tuple(worker["status"] for worker in told["workers"]),
        pids={worker["id"]: worker["pid"] for worker in told["workers"]},
        min_workers=told["minWorkers"],
        pending_requests=told["jobQueueStatus"]["pendingRequests"],
    )
