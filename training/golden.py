"""Golden rows: request rows by which an archive proves that it computes what training did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from handlers.feature import LISTS, TIMES
from handlers.schema import FeatureSchema, Matrix
from handlers.times import to_iso
from handlers.values import LIST_SEPARATOR
from training.data.feature_flags import readers_of
from training.data.features import to_matrix
from training.data.nested import json_cells
from training.data.sources import DataError

GOLDEN_ROWS = 32
UNKNOWN_TOKEN = "a token that no vocabulary holds"


@dataclass(frozen=True)
class Golden:
    """Request rows with the predictions that the training code makes for them, as JSON."""

    rows: Sequence[Any]
    predictions: Sequence[Any]


def golden_rows(schema: FeatureSchema, test: pd.DataFrame) -> list[dict[str, Any]]:
    """Pick request rows for the archive to prove itself on: the first ones of the test split.

    Every fourth row lacks a feature, and the first one has tokens that no vocabulary holds.
    """
    present = [name for name in schema.names if name in test]
    rows = request_rows(schema, test.head(GOLDEN_ROWS))
    for i, row in enumerate(rows[3::4]):
        row.pop(present[i % len(present)], None)
    for f in schema.features:
        if f.kind == "category":
            rows[0][f.name] = UNKNOWN_TOKEN
        elif f.kind in LISTS:
            unknown = UNKNOWN_TOKEN.replace(f.separator, "") if f.separator else UNKNOWN_TOKEN
            tokens = rows[0].get(f.name, [])
            # At the end that is not cut.
            rows[0][f.name] = [unknown, *tokens] if f.kind == "multi" else [*tokens, unknown]
    return rows


def golden_matrix(schema: FeatureSchema, rows: Sequence[Mapping[str, Any]]) -> Matrix:
    """Encode golden rows with the code that reads and encodes training data, float32 [rows, C]."""
    readers = readers_of(schema.features)
    columns: dict[str, Any] = {}
    for name in schema.names:
        values = [row.get(name) for row in rows]
        if name not in readers:
            columns[name] = np.array(values, dtype=np.float64)
            continue
        read, wrong = readers[name](json_cells(values))
        if wrong:
            raise DataError(f"golden row {wrong.row}, {name}: {wrong.problem}")
        columns[name] = read if isinstance(read, np.ndarray) else read.to_pandas()
    return to_matrix(schema, pd.DataFrame(columns))


def request_rows(schema: FeatureSchema, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert the rows of a data frame to request rows, which leave missing cells out."""
    present = frame[[name for name in schema.names if name in frame]].copy()
    for name in present.select_dtypes(np.float32):
        # Through text, so that a row reads 0.1 and not 0.10000000149011612.
        present[name] = present[name].to_numpy().astype(str).astype(np.float64)
    rows = [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in present.to_dict("records")
    ]
    for f in schema.features:
        if f.kind in LISTS or f.kind in TIMES:
            for row in rows:
                if f.name in row:
                    value = row[f.name]
                    row[f.name] = to_iso(value) if f.kind in TIMES else value.split(LIST_SEPARATOR)
    return rows
