"""Decodes and validates request bodies, with messages that say what is wrong where."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import orjson

from handlers.errors import MAX_SHOWN, RequestError

EXAMPLE = '{"data": [{...}, ...]}'

_LOCATED = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<types>[^`]*)`(?: of length (?P<length>\d+))?")
_INDEX = re.compile(r"^\[(\d+)\]")
# Types as msgspec names them, and as messages name them.
_TYPE_NAMES = {
    "float | null": "a number",
    "bool | int | float | str | null": "a string or a number",
    "int | float | str | null": "a string or a number",
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

    Attributes:
        unknown: How often each unknown key was ignored; its reader may clear it.
    """

    def __init__(
        self,
        row_type: Callable[[bool], Any],
        names: Sequence[str],
        known: Iterable[str],
        max_rows: int,
    ) -> None:
        self._names = names
        self._known = frozenset(known)
        self._max_rows = max_rows
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
        try:
            try:
                data = self._strict.decode(body).data
            except msgspec.ValidationError:
                # Probably an unknown key, which is not an error. Any real error is raised again.
                data = self._lenient.decode(body).data
                self._count_unknown(msgspec.json.decode(body)["data"])
        except msgspec.ValidationError as error:
            raise RequestError(400, self._explain(str(error), body)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RequestError(400, f"body: expected JSON like {EXAMPLE}, got: {error}") from error
        rows = data if type(data) is list else [data]
        if not rows:
            raise RequestError(400, "data: expected at least one row, got an empty list")
        if len(rows) > self._max_rows:
            raise RequestError(
                413, f"data: expected at most {self._max_rows} rows, got {len(rows)}; split them"
            )
        return rows

    def _count_unknown(self, value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                self._count_unknown(item)
        elif isinstance(value, dict):
            for key, item in value.items():
                if key not in self._known:
                    self.unknown[key] += 1
                elif type(item) is dict or type(item) is list:  # Spares a call for each number.
                    self._count_unknown(item)

    def _explain(self, message: str, body: bytes | bytearray) -> str:
        """Turn msgspec's message into one that states the place, the expected and the given."""
        located = _LOCATED.match(message)
        what, path = (located["what"], located["path"] or "") if located else (message, "")
        if "missing required field" in what:
            name = what.split("`")[1]
            where = f"{path}.{name}" if path else name
            return f"{where}: expected it in {EXAMPLE}, got no such key"
        try:
            got = _value_at(body, path)
        except (LookupError, ValueError, TypeError, RecursionError):
            # For example, a key that occurs twice with different values. Leave the value out.
            return f"{self._named(path) or 'body'}: {what}"
        if what == "Number out of range":
            expected, shown = "a number within float64", _clipped(str(got))
        elif (match := _EXPECTED.match(what)) and match["length"]:
            names = self._names[: int(match["length"])]
            expected = f"{len(names)} values ({', '.join(names)})"
            shown = str(len(got))
        else:
            expected = _TYPE_NAMES.get(match["types"], match["types"]) if match else what
            shown = _clipped(json.dumps(got, ensure_ascii=False))
        if not path:
            return f"body: expected an object like {EXAMPLE}, got {shown}"
        return f"{self._named(path)}: expected {expected}, got {shown}"

    def _named(self, path: str) -> str:
        """Replace the index of a vector's element by its name: ``data[3][1]`` -> ``data[3].x``."""
        match = re.fullmatch(r"(data\[\d+\])\[(\d+)\]", path)
        return f"{match[1]}.{self._names[int(match[2])]}" if match else path


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


def _value_at(body: bytes | bytearray, path: str) -> Any:
    """Return the value at a path like ``data[3].user_age``; numbers beyond float64 as text."""
    value = json.loads(body, parse_float=_finite_or_text)
    while path:
        if match := _INDEX.match(path):
            value, path = value[int(match[1])], path[match.end() :]
        else:
            path = path.removeprefix(".")
            # A key may contain any character, so take the longest key that matches.
            key = max((k for k in value if path.startswith(k)), key=len)
            value, path = value[key], path[len(key) :]
    return value


def _finite_or_text(number: str) -> float | str:
    return float(number) if math.isfinite(float(number)) else number


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
