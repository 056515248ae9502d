"""Decodes and validates request bodies, with messages that say what is wrong where."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import orjson

from handlers.body_text import (
    MAX_DIGITS,
    clipped,
    explain_not_json,
    literals,
    parse,
    shown,
    value_at,
)
from handlers.errors import RequestError, RowError

MAX_NAMES = 300  # Most characters of a list of names in a message.
EXAMPLE = '{"data": [{...}, ...]}'
A_NUMBER = "a number"

_LOCATED = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<types>[^`]*)`(?: of length (?P<length>\d+))?")
_OUT_OF_RANGE = {
    "Number out of range": "a number within float64",
    "Integer value out of range": f"an integer of at most {MAX_DIGITS} digits",
}
# Types as msgspec names them, and as messages name them.
_TYPE_NAMES = {
    "float | null": A_NUMBER,
    "bool | int | float | str": "a string or a number",
    "bool | int | float | str | null": "a string or a number",
    "int | float | str | null": "a string or a number",
    "bool | int | float | str | array | null": "a list, a string or a number",
    "object | array": "an object or an array",
    "array | null": "a list",
    "object": "an object",
    "object | null": "an object",
    "str | null": "a text",
}


class RequestDecoder:
    """Decodes request bodies with decoders that are compiled from the type of a row.

    Args:
        row_type: Returns the msgspec type of a row, with structs that forbid unknown fields (True)
            or ignore them (False).
        names: Feature names in order, for messages about elements of vectors.
        known: Keys that a row may have, at any depth.
        max_rows: Most rows of one request.
        max_unknown_share: Largest share of a row's keys that may be unknown, from 0 to 1. A row
            whose keys are all unknown is always refused.

    Attributes:
        unknown: How often each unknown key was ignored; its reader may clear it.
    """

    def __init__(
        self,
        row_type: Callable[[bool], Any],
        names: Sequence[str],
        known: Iterable[str],
        max_rows: int,
        max_unknown_share: float = 1.0,
    ) -> None:
        self._names = names
        self._known = frozenset(known)
        self._max_rows = max_rows
        self._max_unknown_share = max_unknown_share
        self._strict = _compile(row_type(True))
        self._lenient = _compile(row_type(False))
        self.unknown: Counter[str] = Counter()

    def decode(self, body: Any) -> list[Any]:
        """Decode the rows of one request.

        Args:
            body: The body as it came: bytes; None for a form, whose body TorchServe keeps.

        Returns:
            At least one row.

        Raises:
            RequestError: 400 if the body violates the protocol, 413 if it has too many rows.
        """
        if not isinstance(body, bytes | bytearray):
            body = _to_bytes(body)
        all_known = True
        try:
            try:
                data = self._strict.decode(body).data
            except msgspec.ValidationError:
                # Probably an unknown key, which is not an error. Any real error is raised again.
                data = self._lenient.decode(body).data
                all_known = False
            rows = data if type(data) is list else [data]
            self._check_length(rows)
            if not all_known:
                self._count_unknown(parse(body)["data"])
        except msgspec.ValidationError as error:
            raise RequestError(400, self._explain(str(error), body)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = explain_not_json(body, f"JSON like {EXAMPLE}", error)
            raise RequestError(400, message) from error
        return rows

    def explain_row(self, body: Any, error: RowError) -> str:
        """Describe the error of a row by its place in the body and the numbers as they were sent.

        Args:
            body: The body as it came.
            error: The error; its row is an index of the rows that :meth:`decode` has returned.
        """
        body = body if isinstance(body, bytes | bytearray) else _to_bytes(body)
        try:
            place, value = self._place(value_at(body, "data"), error)
        except RecursionError:  # An unknown key holds what is nested too deeply for Python.
            place, value = f"data[{error.row}].{error.feature}", None
        return f"{place}: {_as_sent(error.problem, value)}"

    def _place(self, data: Any, error: RowError) -> tuple[str, Any]:
        """Return the path of a feature, and its value; None if it is not found."""
        where, row = ("data", data) if type(data) is dict else _element(data, error.row)
        place, value = f"{where}.{error.feature}", None
        if type(row) is list:
            return place, dict(zip(self._names, row, strict=False)).get(error.feature)
        # A handler prefers wrapped features to bare ones.
        for prefix, features in [(where, row), *((f"{where}.{key}", row[key]) for key in row)]:
            if type(features) is dict and error.feature in features:
                place, value = f"{prefix}.{error.feature}", features[error.feature]
        return place, value

    def _check_length(self, rows: list[Any]) -> None:
        if not rows:
            raise RequestError(400, "data: expected at least one row, got an empty list")
        if len(rows) > self._max_rows:
            raise RequestError(
                413, f"data: expected at most {self._max_rows} rows, got {len(rows)}; split them"
            )

    def _count_unknown(self, data: Any) -> None:
        """Count unknown keys; refuse a row that has too many of them."""
        found: list[str] = []
        for i in range(len(data) if type(data) is list else 1):
            where, row = ("data", data) if type(data) is dict else _element(data, i)
            if type(row) is dict:
                unknown: list[str] = []
                n_known = self._sort_keys(row, unknown, found)
                self._check_share(where, n_known, unknown)
                found += unknown
        self.unknown.update(found)

    def _sort_keys(self, features: dict[str, Any], unknown: list[str], inside: list[str]) -> int:
        """Return the number of known keys of a row.

        Args:
            features: The row, or its wrapped features.
            unknown: Gets the unknown keys.
            inside: Gets the unknown keys of objects inside lists, which are parts of a feature.
        """
        n_known = 0
        for key, value in features.items():
            if key not in self._known:
                unknown.append(key)
            elif type(value) is dict and value:  # wrapped features
                n_known += self._sort_keys(value, unknown, inside)
            else:
                n_known += 1
                if type(value) is list:
                    for item in value:
                        if type(item) is dict:
                            self._sort_keys(item, inside, inside)
        return n_known

    def _check_share(self, where: str, n_known: int, unknown: list[str]) -> None:
        n_keys = n_known + len(unknown)
        if unknown and (not n_known or len(unknown) > self._max_unknown_share * n_keys):
            limit = f" (max_unknown_share: {self._max_unknown_share:g})" if n_known else ""
            names = clipped(", ".join(self._names), MAX_NAMES)
            got = clipped(", ".join(unknown), MAX_NAMES)
            raise RequestError(
                400,
                f"{where}: expected features of the model ({names}), "
                f"got {len(unknown)} unknown of {n_keys} keys{limit}: {got}",
            )

    def _explain(self, message: str, body: bytes | bytearray) -> str:
        """Turn msgspec's message into one that states the place, the expected and the given."""
        located = _LOCATED.match(message)
        what, path = (located["what"], located["path"] or "") if located else (message, "")
        if "missing required field" in what:
            name = what.split("`")[1]
            where = f"{path}.{name}" if path else name
            return f"{where}: expected it in {EXAMPLE}, got no such key"
        try:
            got = value_at(body, path)
            given = shown(got)
        except (LookupError, ValueError, TypeError, RecursionError):
            # For example, a key that occurs twice with different values. Leave the value out.
            return f"{self._named(path) or 'body'}: {what}"
        advice = ""
        if what in _OUT_OF_RANGE:
            expected = _OUT_OF_RANGE[what]
        elif (match := _EXPECTED.match(what)) and match["length"]:
            names = self._names[: int(match["length"])]
            expected = f"{len(names)} values ({', '.join(names)})"
            given = str(len(got))
        else:
            expected = _TYPE_NAMES.get(match["types"], match["types"]) if match else what
            if expected == A_NUMBER and type(got) is bool:
                advice = "; send 1 for true, 0 for false"
        if not path:
            return f"body: expected an object like {EXAMPLE}, got {given}"
        return f"{self._named(path)}: expected {expected}, got {given}{advice}"

    def _named(self, path: str) -> str:
        """Replace the index of a vector's element by its name: ``data[3][1]`` -> ``data[3].x``."""
        match = re.fullmatch(r"(data\[\d+\])\[(\d+)\](.*)", path, re.DOTALL)
        return f"{match[1]}.{self._names[int(match[2])]}{match[3]}" if match else path


def _element(data: list[Any], i: int) -> tuple[str, Any]:
    return f"data[{i}]", data[i]


def _as_sent(problem: str, value: Any) -> str:
    """Replace a float in a message by its spelling in the body."""
    for literal in literals(value):
        if not literal.lstrip("-").isdigit() and (parsed := repr(float(literal))) in problem:
            return problem.replace(parsed, literal, 1)
    return problem


def _to_bytes(body: Any) -> bytes:
    if body is None:
        raise RequestError(
            400, "body: expected JSON, got a form; send Content-Type: application/json"
        )
    # TorchServe has parsed the body because it runs without decode_input_request=false.
    return orjson.dumps(body)


def _compile(row: Any) -> msgspec.json.Decoder[Any]:
    request = msgspec.defstruct("Request", [("data", list[row] | _struct(row))])
    return msgspec.json.Decoder(request)


def _struct(row: Any) -> Any:
    """Return the struct of a row's type; ``data`` may be one such object instead of a list."""
    members = getattr(row, "__args__", (row,))
    return next(m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct))
