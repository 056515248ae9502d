"""The errors that a caller or an operator gets to read."""

from http import HTTPStatus

import orjson

_TYPES = {
    400: "InvalidRequest",
    413: "TooManyRows",
    500: "ScoringFailed",
}


class UserError(Exception):
    """The user can put this right; the message says where, what was expected and what to do.

    Every command prints the message of a UserError without a traceback, and fails.
    """


class RequestError(ValueError):
    """One request cannot be answered; its batch-mates are not concerned.

    Args:
        status: HTTP status of the answer: 400, 413 or 500.
        message: Where, what was expected, what came.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = HTTPStatus(status).phrase

    def to_json(self) -> bytes:
        """The body in TorchServe's own shape: ``{"code": .., "type": .., "message": ..}``."""
        # A lone surrogate echoed from the request is not UTF-8; the answer has to be.
        message = str(self).encode("utf-8", "replace").decode()
        return orjson.dumps({"code": self.status, "type": _TYPES[self.status], "message": message})


class ArchiveError(UserError):
    """An archive or artifact folder must not be served: incomplete, altered, or skewed."""
