"""Advice in messages about data: the flags that would read it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pandas as pd
import pyarrow as pa

from training.data.files import File
from training.data.inspection.columns import names_id
from training.data.inspection.commands import quote
from training.data.inspection.kinds import describe, inspect
from training.data.inspection.models import RANKER, every_proposal
from training.data.inspection.ranking import multi, propose_ranking
from training.data.sources import DataError, DataSet, readable_columns

# Enough rows for the flags of a message.
_SAMPLE_ROWS = 20_000
_RANKERS = ("deepfm", "xgb", "din")


def flag_for(name: str, cells: pa.Array, flags: Collection[str]) -> str:
    """Return the flag that reads a column which does not hold numbers.

    Args:
        name: Name of the column.
        cells: Some of its cells.
        flags: Flags to choose from: ``--categorical``, ``--multi`` and ``--timestamp``.

    Returns:
        A flag and its value, such as ``--categorical city``; empty if none fits, or if the column
        holds numbers but for a few cells.
    """
    column = describe(name, cells)
    if column.kind == "list" and "--multi" in flags:
        return f"--multi {quote(multi([column]))}"
    if column.kind == "time" and "--timestamp" in flags:
        return f"--timestamp {quote(name)}"
    if "--categorical" not in flags or (not names_id(name) and _mostly_numbers(cells)):
        return ""
    return f"--categorical {quote(name)}"


def _mostly_numbers(cells: pa.Array) -> bool:
    texts = pd.Series(cells.cast(pa.large_string()).drop_null().unique().to_pylist(), dtype=object)
    return bool(pd.to_numeric(texts, errors="coerce").notna().mean() >= 0.5)


def check_default_columns(
    data: DataSet,
    model: str,
    defaults: Mapping[str, Sequence[str]],
    optional: Collection[str],
) -> None:
    """Refuse data that has no columns of the names that flags have by default.

    Args:
        data: The data.
        model: Name of the model to train.
        defaults: Columns by flag, of the flags that have their default value.
        optional: Columns that the data may lack.

    Raises:
        DataError: If the data lacks most columns of a flag; the message has the flags for this
            data.
    """
    source = data.table[0]
    available = readable_columns(source)
    known = {*available, *optional}
    absent = {flag: [n for n in names if n not in known] for flag, names in defaults.items()}
    flags = [flag for flag, names in defaults.items() if 2 * len(absent[flag]) > len(names)]
    if not flags or len(available) < 2:
        return
    named = ", ".join(dict.fromkeys(name for flag in flags for name in absent[flag]))
    is_files = all(isinstance(part, File) for part in data.table)
    advice = f"make inspect DATA={quote(data.name)}" if is_files else "make inspect"
    if proposed := " ".join(_proposed(data, model)):
        advice = f"add {proposed}, or run: {advice}"
    else:
        advice = f"run: {advice}"
    raise DataError(
        f"{source.name}: missing column {named}, the default of {' and '.join(flags)}; it has "
        f"{', '.join(available)}; for this data, {advice}"
    )


def _proposed(data: DataSet, model: str) -> list[str]:
    """Return the flags for a model, none if it does not fit."""
    inspection = inspect(data, _SAMPLE_ROWS)
    wanted = RANKER if model in _RANKERS else model
    for p in every_proposal(inspection, propose_ranking(inspection)):
        if p.model == wanted and not p.needs_label:
            return [quote(word) for flag in p.flags for word in flag]
    return []
