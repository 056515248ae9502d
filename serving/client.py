"""Client of TorchServe's inference and management APIs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from opentelemetry import propagate, trace

from handlers.errors import UserError
from serving.model_version import ModelVersion
from serving.settings import Settings

OK = 200
NOT_FOUND = 404
CONFLICT = 409
# A management call that got no answer is made again within this time. Predictions never are: their
# callers measure them, or wait no longer.
RETRY_BUDGET_S = 30.0
RETRY_INTERVAL_S = 0.2
# Further callers wait for a connection instead of filling TorchServe's queues.
MAX_CONNECTIONS = 256
MAX_BODY_BYTES = 8 << 20  # TorchServe's max_request_size
# The error types that our handlers give to requests that the caller has to correct.
INVALID_REQUEST_TYPES = ("InvalidRequest", "TooManyRows")
REQUEST_ID = "X-Request-ID"

# Sent on to TorchServe, whose workers log it when a model fails; empty for our own requests.
request_id_of_caller = ContextVar("request_id_of_caller", default="")
tracer = trace.get_tracer(__name__)  # records nothing until a provider is set


class TorchServeError(UserError):
    """TorchServe refused a request, or did not answer it.

    Args:
        status: HTTP status for the sidecar's caller.
        message: The reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NoAnswerError(TorchServeError):
    """TorchServe did not answer in time, or broke the connection off; it may have obeyed."""


class TorchServe:
    """A client with pooled connections; an async context manager.

    It ignores the environment's proxies: TorchServe's management API is on loopback.

    Args:
        inference_url: URL of the predictions.
        management_url: URL of the management API.
        key_file: TorchServe's ``key_file.json`` if it requires tokens.
        timeout_s: Seconds until an unanswered request fails.
    """

    _session: aiohttp.ClientSession

    def __init__(
        self, inference_url: str, management_url: str, key_file: Path | None, timeout_s: float
    ) -> None:
        self.inference_url = inference_url
        self.management_url = management_url
        self._key_file = key_file
        self._timeout_s = timeout_s

    @classmethod
    def on_this_machine(
        cls, settings: Settings, *, tokens: bool | None = None, timeout_s: float = 5.0
    ) -> TorchServe:
        """Create a client of a server on this machine.

        Args:
            settings: Settings of the server.
            tokens: The server requires tokens; None to decide by whether it has written any.
            timeout_s: Seconds until an unanswered request fails.
        """
        with_tokens = settings.key_file.exists() if tokens is None else tokens
        key_file = settings.key_file if with_tokens else None
        return cls(settings.inference_url, settings.management_url, key_file, timeout_s)

    async def __aenter__(self) -> Self:
        """Open the connection pool, in the event loop that uses it."""
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
        """Close the connection pool."""
        await self._session.close()

    # Inference

    async def predict(self, model: str, rows: Any) -> list[Any]:
        """Return the predictions of a model's default version, one per row.

        Args:
            model: Name of the model.
            rows: The rows; what orjson writes, such as fragments of JSON.

        Raises:
            TorchServeError: 400 or 413 with the model's own message about the rows; 503 if the
                model is unavailable; 504 if it is too slow.
        """
        body = orjson.dumps({"data": rows})
        if len(body) > MAX_BODY_BYTES:  # the caller's body may have been a little shorter
            raise TorchServeError(413, too_large(len(body)))
        status, answer = await self.send(model, body)
        if status == OK:
            predictions: list[Any] = orjson.loads(answer)["predictions"]
            return predictions
        kind, message = _reason(answer)
        if kind in INVALID_REQUEST_TYPES:
            raise TorchServeError(status, message)
        raise TorchServeError(503, f"{model}: TorchServe answered {status}: {message}")

    async def send(self, model: str, body: bytes, version: str | None = None) -> tuple[int, bytes]:
        """Send a body to a model unchanged.

        Args:
            model: Name of the model.
            body: JSON.
            version: Version of the model; None for the default one.

        Returns:
            TorchServe's status and body.

        Raises:
            TorchServeError: If there is no response.
        """
        path = f"/predictions/{model}" if version is None else f"/predictions/{model}/{version}"
        return await self._call("POST", self.inference_url + path, "inference", body)

    # Management

    async def models(self) -> list[ModelVersion]:
        """Return every version of every registered model, sorted by model name.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        listed = await self._get("/models?limit=1000") or {"models": []}
        names = sorted(model["modelName"] for model in listed["models"])
        return list(chain.from_iterable(await asyncio.gather(*map(self._all_versions, names))))

    async def default_version(self, model: str) -> ModelVersion | None:
        """Return the version that answers when the URL names none; None if there is none."""
        described = await self._get(f"/models/{model}")
        return ModelVersion.from_json(described[0], is_default=True) if described else None

    async def versions(self, model: str) -> list[ModelVersion]:
        """Return every version of a model, the default one first; none if it is not loaded."""
        return sorted(await self._all_versions(model), key=lambda found: not found.is_default)

    async def version(self, model: str, version: str) -> ModelVersion | None:
        """Return one version of a model; None if it is not loaded."""
        described = await self._get(f"/models/{model}/{version}")
        return ModelVersion.from_json(described[0], is_default=None) if described else None

    async def signature(self, model: str) -> dict[str, Any]:
        """Return the signature of a model's default version; empty if it is not loaded."""
        status, answer, _ = await self._manage("GET", f"/models/{model}?customized=true")
        described = orjson.loads(answer)[0] if status == OK else {}
        signature: dict[str, Any] = described.get("customizedMetadata") or {}
        return signature

    async def register(self, archive: str) -> None:
        """Start loading an archive of the model store, with the workers that it configures.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        await self._change("POST", f"/models?url={archive}&synchronous=false", CONFLICT)

    async def set_default(self, model: str, version: str) -> None:
        """Make a version answer when the URL names none.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        await self._change("PUT", f"/models/{model}/{version}/set-default", OK)

    async def unregister(self, model: str, version: str) -> None:
        """Remove a version immediately; its requests in flight are never answered.

        Raises:
            TorchServeError: If TorchServe refuses.
        """
        await self._change("DELETE", f"/models/{model}/{version}", NOT_FOUND)

    async def _all_versions(self, model: str) -> list[ModelVersion]:
        default, described = await asyncio.gather(
            self.default_version(model), self._get(f"/models/{model}/all")
        )
        name = None if default is None else default.version
        return [
            ModelVersion.from_json(each, is_default=each["modelVersion"] == name)
            for each in described or []
        ]

    async def _get(self, path: str) -> Any:
        """Return what the management API describes; None if there is no such thing."""
        status, answer, _ = await self._manage("GET", path)
        if status == NOT_FOUND:
            return None
        if status != OK:
            raise self._refused("GET", path, status, answer)
        return orjson.loads(answer)

    async def _change(self, method: str, path: str, done: int) -> None:
        """Change what is served; `done` is the status if an attempt without an answer did it."""
        status, answer, attempts = await self._manage(method, path)
        if status >= 400 and not (attempts > 1 and status == done):
            raise self._refused(method, path, status, answer)

    def _refused(self, method: str, path: str, status: int, answer: bytes) -> TorchServeError:
        what = f"{method} {self.management_url}{path}: TorchServe answered {status}"
        return TorchServeError(503, f"{what}: {_reason(answer)[1]}")

    async def _manage(self, method: str, path: str) -> tuple[int, bytes, int]:
        """Call the management API until it answers; return status, body and number of attempts."""
        deadline, attempts = time.monotonic() + RETRY_BUDGET_S, 1
        while True:
            try:
                status, answer = await self._call(method, self.management_url + path, "management")
                return status, answer, attempts
            except NoAnswerError:
                if time.monotonic() > deadline:
                    raise
            attempts += 1
            await asyncio.sleep(RETRY_INTERVAL_S)

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
            raise NoAnswerError(504, f"{url}: {expected}, got none") from error
        except aiohttp.ClientError as error:
            lost = isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError)
            refused = isinstance(error, aiohttp.ClientConnectorError)  # not for want of time
            kind = NoAnswerError if lost and not refused else TorchServeError
            raise kind(503, f"{url}: TorchServe is unreachable: {error}") from error


def too_large(n_bytes: int) -> str:
    """Describe a body of more bytes than TorchServe accepts."""
    return f"body: expected at most {MAX_BODY_BYTES} bytes, got {n_bytes}; split it"


@contextmanager
def _traced(name: str, headers: dict[str, str]) -> Iterator[None]:
    """Record a span if the caller's request is traced; the headers continue its trace."""
    if not trace.get_current_span().is_recording():
        yield
        return
    with tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT):
        propagate.inject(headers)
        yield


def _token(key_file: Path, key: str) -> str:
    """Read a token; not cached, because a restarted TorchServe has new ones."""
    try:
        return str(orjson.loads(key_file.read_bytes())[key]["key"])
    except (OSError, ValueError, LookupError) as error:
        raise TorchServeError(
            503, f"{key_file}: expected TorchServe's tokens, got: {error!r}; is it running?"
        ) from error


def _reason(answer: bytes) -> tuple[str, str]:
    """Return the type and message of an error body."""
    try:
        error = orjson.loads(answer)
        return str(error["type"]), str(error["message"])
    except (ValueError, LookupError, TypeError):
        return "", answer.decode(errors="replace")
