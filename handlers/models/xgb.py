"""Gradient-boosted trees (Chen and Guestrin, 2016, arXiv:1603.02754).

The trees' inputs, with target encodings for ids, and a booster that predicts with little overhead.

Shapes: B instances, C matrix columns, K of them categories.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

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


_PREDICTION = (
    b'{"type": 0, "training": false, "iteration_begin": 0, "iteration_end": 0, '
    b'"missing": NaN, "strict_shape": false, "cache_id": 0}'
)


def _import_xgboost() -> ModuleType:
    """Import XGBoost without scikit-learn.

    XGBoost imports scikit-learn, and with it pandas, wherever they are installed: 130 MB in every
    worker that nothing uses. A module that is None in ``sys.modules`` raises ImportError, which
    XGBoost takes for "not installed". A process that has scikit-learn already keeps it.
    """
    if "sklearn" in sys.modules:
        return importlib.import_module("xgboost.core")
    sys.modules["sklearn"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("xgboost.core")
    finally:
        del sys.modules["sklearn"]


class DenseBooster:
    """Predicts like ``Booster.inplace_predict``, which takes twice the time on a small batch.

    Calls ``XGBoosterPredictFromDense`` of XGBoost's C API.

    Args:
        path: What ``Booster.save_model`` wrote.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._xgboost = _import_xgboost()
        self._booster = self._xgboost.Booster({"nthread": 1, "device": device})
        self._booster.load_model(path)
        self._predict = self._xgboost._LIB.XGBoosterPredictFromDense
        self._shape = ctypes.POINTER(ctypes.c_uint64)()
        self._n_dims = ctypes.c_uint64()
        self._result = ctypes.POINTER(ctypes.c_float)()
        self._outputs = [ctypes.byref(x) for x in (self._shape, self._n_dims, self._result)]

    def __call__(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict.

        Args:
            matrix: float32 [B, C]; NaN for missing.

        Returns:
            float32 [B].

        Raises:
            xgboost.core.XGBoostError: If the number of columns is not the model's.
        """
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        array = b'{"data": [%d, true], "shape": [%d, %d], "typestr": "<f4", "version": 3}' % (
            matrix.ctypes.data,
            *matrix.shape,
        )
        status = self._predict(self._booster.handle, array, _PREDICTION, None, *self._outputs)
        self._xgboost._check_call(status)
        # The booster's own memory, which its next prediction overwrites.
        return np.ctypeslib.as_array(self._result, (len(matrix),)).copy()
