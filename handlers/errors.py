"""Errors whose messages are meant for callers and operators."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import orjson

MAX_SHOWN = 60  # Most characters of a value in a message.

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


class RowError(ValueError):
    """A row that was decoded cannot be encoded; the request that it belongs to gets a 400.

    Args:
        row: Position among the rows that are encoded together.
        feature: Name of the feature.
        problem: What was expected and what came.
    """

    def __init__(self, row: int, feature: str, problem: str) -> None:
        super().__init__(f"row {row}, {feature}: {problem}")
        self.row, self.feature, self.problem = row, feature, problem

    def in_lists(self, ends: Sequence[int]) -> RowError:
        """Return the error of the list that holds the item whose position is ``row``.

        Args:
            ends: Number of items up to the end of each row's list.
        """
        return RowError(bisect_right(ends, self.row), self.feature, self.problem)


class ArchiveError(UserError):
    """An archive or artifact folder is incomplete, altered or skewed and must not be served."""
