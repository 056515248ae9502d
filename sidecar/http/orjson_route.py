"""JSON bodies by orjson: it is faster than the standard library, and rejects NaN."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute


class OrjsonRequest(Request):
    """A request whose JSON orjson parses."""

    async def json(self) -> Any:
        """Parse the body."""
        return orjson.loads(await self.body())


class OrjsonRoute(APIRoute):
    """A route that receives an :class:`OrjsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(OrjsonRequest(request.scope, request.receive))

        return answer


class OrjsonResponse(JSONResponse):
    """A response whose JSON orjson writes."""

    def render(self, content: Any) -> bytes:
        """Write the body."""
        return orjson.dumps(content)
