"""Golden rows: raw request rows by which an archive proves that it computes what training did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from handlers.schema import FeatureSchema, Matrix
from training.data.features import to_matrix

GOLDEN_ROWS = 32


UNKNOWN_TOKEN = "a token that no vocabulary holds"


def golden_rows(schema: FeatureSchema, test: pd.DataFrame) -> list[dict[str, Any]]:
    """Raw request rows for the archive to prove itself on.

    The first rows of the test split; every fourth one lacks a feature, and one has tokens that no
    vocabulary holds.
    """
    present = [name for name in schema.names if name in test]
    rows = request_rows(schema, test.head(GOLDEN_ROWS))
    for i, row in enumerate(rows[3::4]):
        row.pop(present[i % len(present)], None)
    rows[0] |= {f.name: UNKNOWN_TOKEN for f in schema.features if f.kind == "category"}
    return rows


def request_rows(schema: FeatureSchema, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a data frame as callers send them, without the missing cells."""
    present = frame[[name for name in schema.names if name in frame]].copy()
    for name in present.select_dtypes(np.float32):
        # Through text, so that a row says 0.1 and not 0.10000000149011612.
        present[name] = present[name].to_numpy().astype(str).astype(np.float64)
    return [
        {str(name): value for name, value in row.items() if not pd.isna(value)}
        for row in present.to_dict("records")
    ]


def golden_matrix(schema: FeatureSchema, rows: Sequence[Mapping[str, Any]]) -> Matrix:
    """Encode golden rows the way that training encodes its data, float32 [rows, C]."""
    frame = pd.DataFrame(rows)
    numbers = [f.name for f in schema.features if f.kind == "number" and f.name in frame]
    return to_matrix(schema, frame.astype(dict.fromkeys(numbers, np.float64)))


@dataclass(frozen=True)
class Golden:
    """Raw request rows with what the training code predicts for them, as JSON."""

    rows: Sequence[Any]
    predictions: Sequence[Any]
