"""What trees need done to the matrix: encodings for ids, and scaling when asked for.

Shapes: B instances, C matrix columns, K of them categories.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from handlers.schema import FeatureSchema, Matrix

ARCH_VERSION = 2
META_FILE = "feature_meta.json"
BOOSTER_FILE = "xgb_model.json"
ENCODINGS_FILE = "target_encodings.json"
SCALER_FILE = "feature_scaler.json"

Vector = npt.NDArray[np.float32]


@dataclass
class TreeInputs:
    """Maps the matrix of a :class:`FeatureSchema` to the one that the trees split on.

    Attributes:
        encodings: By category column, for each index its smoothed mean label (Micci-Barreca, 2001,
            doi:10.1145/507533.507538) and how many rows training had of it, which tells how far
            to trust that mean: float32 [cardinality, 2].
        mean: float32 [C + K], or None when the columns are not scaled.
        std: float32 [C + K], positive, or None.
    """

    encodings: Mapping[int, Matrix] = field(default_factory=dict)
    mean: Vector | None = None
    std: Vector | None = None

    def __call__(self, matrix: Matrix) -> Matrix:
        """Means take the place of indices, counts follow: float32 [B, C] -> float32 [B, C + K]."""
        if self.encodings:
            counts = []
            matrix = matrix.copy()
            for column, table in self.encodings.items():
                encoded = table[matrix[:, column].astype(np.int64)]  # [B, 2]
                matrix[:, column] = encoded[:, 0]
                counts.append(encoded[:, 1])
            matrix = np.column_stack([matrix, *counts])
        if self.mean is not None and self.std is not None:
            matrix = (matrix - self.mean) / self.std
        return matrix

    def column_names(self, schema: FeatureSchema) -> list[str]:
        """What each of the C + K columns is."""
        names = [feature.name for feature in schema.column_features]
        return [*names, *(f"{names[column]} (rows)" for column in self.encodings)]

    def save(self, folder: Path, schema: FeatureSchema) -> None:
        """Write ``target_encodings.json`` and ``feature_scaler.json``, each if it is in use."""
        if self.encodings:
            tables = {str(column): table.tolist() for column, table in self.encodings.items()}
            (folder / ENCODINGS_FILE).write_text(json.dumps(tables))
        if self.mean is not None and self.std is not None:
            scaler = {
                "feature_columns": self.column_names(schema),
                "mean": self.mean.tolist(),
                "std": self.std.tolist(),
            }
            (folder / SCALER_FILE).write_text(json.dumps(scaler, indent=2))

    @classmethod
    def load(cls, folder: Path) -> TreeInputs:
        """Read back what :meth:`save` wrote."""
        inputs = cls()
        if (path := folder / ENCODINGS_FILE).exists():
            tables = json.loads(path.read_text())
            inputs.encodings = {
                int(column): np.array(table, dtype=np.float32) for column, table in tables.items()
            }
        if (path := folder / SCALER_FILE).exists():
            scaler = json.loads(path.read_text())
            inputs.mean = np.array(scaler["mean"], dtype=np.float32)
            inputs.std = np.array(scaler["std"], dtype=np.float32)
        return inputs
