"""The responses to requests that fail: ``{"detail": ...}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from handlers.errors import RequestError
from serving.client import TorchServeError
from sidecar.http import bodies
from sidecar.http.orjson_route import OrjsonResponse


async def _invalid_body(request: Request, error: RequestValidationError) -> Response:
    return _problem(request, 400, bodies.explain(error.errors()))


async def _failed(request: Request, error: TorchServeError | RequestError) -> Response:
    return _problem(request, error.status, str(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _problem(request, error.status_code, error.detail, error.headers)


def _problem(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    request.state.detail = detail  # for the log line
    # A lone surrogate is not UTF-8; the response has to be.
    content = {"detail": detail.encode("utf-8", "replace").decode()}
    return OrjsonResponse(content, status, headers)


HANDLERS: dict[int | type[Exception], Any] = {
    RequestValidationError: _invalid_body,
    RequestError: _failed,
    TorchServeError: _failed,
    HTTPException: _http_error,
}
