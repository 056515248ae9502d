"""Golden rows: request rows by which an archive proves that it computes what training did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

import numpy as np
import pandas as pd

from handlers.feature import LISTS, TIMES
from handlers.schema import FeatureSchema, Matrix
from handlers.times import to_iso, to_seconds
from handlers.values import LIST_SEPARATOR
from training.data.features import to_matrix

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
    """Encode golden rows with the code that encodes training data, float32 [rows, C]."""
    frame = pd.DataFrame(rows)
    for f in schema.features:
        if f.name in frame and f.kind in LISTS:
            frame[f.name] = frame[f.name].map(LIST_SEPARATOR.join, na_action="ignore")
        elif f.name in frame and f.kind in TIMES:
            texts = frame[f.name].astype(object)
            frame[f.name] = to_seconds(texts.where(texts.notna(), None), UTC, f.name)
        elif f.name in frame and f.kind != "category":
            frame[f.name] = frame[f.name].astype(np.float64)
    return to_matrix(schema, frame)


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
