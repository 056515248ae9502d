"""JSON bodies: parsed as the handlers parse them, limited in size, and sent on unchanged."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any

import msgspec
import orjson
from fastapi import Depends, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from handlers.body_text import explain_not_json, parse
from handlers.errors import RequestError
from serving.client import MAX_BODY_BYTES, too_large
from sidecar.http import bodies

_values = msgspec.json.Decoder(dict[str, msgspec.Raw])


class JsonRequest(Request):
    """A request whose body is JSON of at most 8 MiB."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the body.

        Raises:
            HTTPException: 413 if it is too large.
        """
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
            raise HTTPException(413, too_large(int(declared)))
        n_bytes = 0
        async for part in super().stream():
            n_bytes += len(part)
            if n_bytes > MAX_BODY_BYTES:
                raise HTTPException(413, too_large(n_bytes))
            yield part

    async def json(self) -> Any:
        """Parse the body.

        Raises:
            HTTPException: 400 if it is not JSON.
        """
        body = await self.body()
        try:
            return parse(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(400, explain_not_json(body, "JSON", error)) from error


class JsonRoute(APIRoute):
    """A route that receives a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            try:
                return await handle(request)
            except RequestValidationError as error:
                message = bodies.explain(error.errors(), await request.body())
                raise RequestError(400, message) from error

        return answer


async def _sent(request: Request) -> dict[str, orjson.Fragment]:
    try:
        values = _values.decode(await request.body())
    except msgspec.DecodeError:  # FastAPI refuses this body with a better message.
        return {}
    except RecursionError as error:
        raise RequestError(400, f"body: expected less nesting, got: {error}") from error
    texts = {key: bytes(value) for key, value in values.items()}
    return {key: orjson.Fragment(text) for key, text in texts.items() if text != b"null"}


# The values of a body by key, without those that are null. They stay text, so that the model gets
# every digit of an id, and its message quotes what the caller wrote.
Sent = Annotated[dict[str, orjson.Fragment], Depends(_sent)]


class OrjsonResponse(JSONResponse):
    """A response whose JSON orjson writes."""

    def render(self, content: Any) -> bytes:
        """Write the body."""
        return orjson.dumps(content)
