"""HTTP as uvicorn speaks it, with JSON for what is not HTTP."""

from __future__ import annotations

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol


class HttpProtocol(HttpToolsProtocol):
    """Answers bytes that are not an HTTP request with ``{"detail": ...}`` too."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close the connection.

        Args:
            msg: uvicorn's message, which says no more than that the request is invalid.
        """
        body = orjson.dumps({"detail": f"expected an HTTP/1.1 request, got: {msg}"})
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[400], lines, body))
        self.transport.close()
