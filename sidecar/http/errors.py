"""The responses to requests that fail: ``{"detail": ...}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from handlers.errors import RequestError
from serving.client import REQUEST_ID, TorchServeError, request_id_of_caller
from sidecar.http.json_route import OrjsonResponse


async def _failed(request: Request, error: TorchServeError | RequestError) -> Response:
    return _problem(request, error.status, str(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _problem(request, error.status_code, error.detail, error.headers)


async def _crashed(request: Request, error: Exception) -> Response:
    """Answer a request that raised; the server logs the traceback."""
    request_id = request_id_of_caller.get()
    detail = f"the sidecar failed: {type(error).__name__}; see its log, request {request_id}"
    return _problem(request, 500, detail, {REQUEST_ID: request_id})


def _problem(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    request.state.detail = detail  # for the log line
    # A lone surrogate is not UTF-8; the response has to be.
    content = {"detail": detail.encode("utf-8", "replace").decode()}
    return OrjsonResponse(content, status, headers)


HANDLERS: dict[int | type[Exception], Any] = {
    RequestError: _failed,
    TorchServeError: _failed,
    HTTPException: _http_error,
    Exception: _crashed,
}
