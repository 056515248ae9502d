"""Cells that hold lists or objects: pass them on, and say what to do about unexpected ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa

_OBJECT = pa.struct([])
# For models that take no lists. Every fix must be one that a user can follow.
LIST_FIX = "write one value per cell, or a row for each value"


def nested_problem(
    column_type: pa.DataType, *, multi: bool = False, list_fix: str = LIST_FIX
) -> str:
    """Describe cells that hold several values where the model takes one.

    Args:
        column_type: Type of the column.
        multi: Whether the column may hold lists of single values.
        list_fix: What to do about lists of single values.

    Returns:
        What was expected, what was found and what to do; empty if all is well.
    """
    expected = "a list of single values" if multi else "one value"
    if is_list(column_type):
        item = column_type.value_type
        if not is_list(item) and not _is_object(item):
            if multi:
                return ""
            found = "" if pa.types.is_null(item) else f" ({_name(column_type)})"
            return f"expected {expected} per cell, got lists{found}; {list_fix}"
        what, fix = f"lists of {'lists' if is_list(item) else 'objects'}", "flatten them"
    elif _is_object(column_type):
        what, fix = "objects", "write the fields to use as columns of their own"
    else:
        return ""
    return f"expected {expected} per cell, got {what} ({_name(column_type)}); {fix}"


def json_cells(values: Sequence[Any]) -> pa.Array:
    """Convert the cells of a column, parsed from JSON, to Arrow.

    Args:
        values: Scalars, lists and objects; empty text is missing, as an empty cell of CSV is.

    Returns:
        Cells of one type. Mixed types become text as JSON spells it, such as ``7`` and ``true``;
        next to a list, a single value becomes a list of one.
    """
    values = [None if value == "" else value for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # mixed types, or beyond int64
        pass
    if any(isinstance(value, dict) for value in values):
        # Refused by nested_problem; the fields do not matter.
        return pa.array([None if value is None else {} for value in values], _OBJECT)
    if not any(isinstance(value, list) for value in values):
        return pa.array(map(_text, values), pa.string())
    lists = [value if value is None or isinstance(value, list) else [value] for value in values]
    items = [item for value in lists if value is not None for item in value]
    if any(isinstance(item, (list, dict)) for item in items):
        inner = pa.list_(pa.string()) if any(isinstance(i, list) for i in items) else _OBJECT
        return pa.array([None if value is None else [] for value in lists], pa.list_(inner))
    return pa.array(
        [value if value is None else list(map(_text, value)) for value in lists],
        pa.list_(pa.string()),
    )


def _text(value: Any) -> str | None:
    if isinstance(value, float):
        return str(value)  # to_token knows a large float by the plus sign in its exponent
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def is_list(column_type: pa.DataType) -> bool:
    """Return whether the cells of a column are lists."""
    is_type = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(column_type) for check in is_type)


def _is_object(column_type: pa.DataType) -> bool:
    is_type = (pa.types.is_struct, pa.types.is_map, pa.types.is_union)
    return any(check(column_type) for check in is_type)


def _name(column_type: pa.DataType) -> str:
    """Name a type without Arrow's names of list items, such as ``list<int64>``."""
    if not is_list(column_type):
        return "struct" if _is_object(column_type) else str(column_type)
    return f"list<{_name(column_type.value_type)}>"
