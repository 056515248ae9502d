"""Errors whose messages are meant for callers and operators."""

import orjson

_TYPES = {
    400: "InvalidRequest",
    413: "TooManyRows",
    500: "ScoringFailed",
}


class UserError(Exception):
    """An error that the user can fix.

    The message says where it is, what was expected and what to do. Commands print it without a
    traceback and fail.
    """


class RequestError(ValueError):
    """One request cannot be served; the other requests of its batch are not affected.

    Args:
        status: HTTP status of the response: 400, 413 or 500.
        message: The place, what was expected there and what came.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def to_json(self) -> bytes:
        """Return the response body, in TorchServe's format: code, type and message."""
        # The message may quote a lone surrogate of the request, which UTF-8 cannot encode.
        message = str(self).encode("utf-8", "replace").decode()
        return orjson.dumps({"code": self.status, "type": _TYPES[self.status], "message": message})


class ArchiveError(UserError):
    """An archive or artifact folder is incomplete, altered or skewed and must not be served."""
