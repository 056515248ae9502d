"""Gradient-boosted trees (Chen and Guestrin, 2016, arXiv:1603.02754).

The inputs of the trees, with target encodings for ids, and a booster with little overhead.

Shapes: B instances, C matrix columns, K of them categories.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import weakref
from collections.abc import Mapping, Sequence
from ctypes import byref
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from handlers.feature import FIRST_TOKEN_INDEX, LISTS, MISSING_INDEX
from handlers.schema import FeatureSchema, Matrix

ARCH_VERSION = 2
META_FILE = "feature_meta.json"
BOOSTER_FILE = "xgb_model.json"
ENCODINGS_FILE = "target_encodings.json"
LISTS_FILE = "multi_hot.json"
SCALER_FILE = "feature_scaler.json"

Vector = npt.NDArray[np.float32]


class HotList(NamedTuple):
    """A list whose matrix columns become indicators of its most frequent tokens, and its length.

    Attributes:
        start: First matrix column.
        stop: Column after the last one.
        n_tokens: Number of tokens with an indicator, less than the number of columns.
    """

    start: int
    stop: int
    n_tokens: int

    @classmethod
    def all_of(cls, schema: FeatureSchema) -> list[HotList]:
        """Return the lists of a schema. A vocabulary is in the order of frequency; hashes are not.

        Args:
            schema: The schema.
        """
        lists = [(f, schema.columns[f.name]) for f in schema.features if f.kind in LISTS]
        return [
            cls(c.start, c.stop, min(f.max_length - 1, len(schema.items_of(f).vocabulary)))
            for f, c in lists
        ]


@dataclass
class TreeInputs:
    """Converts the matrix of a :class:`FeatureSchema` to the one that the trees split on.

    Attributes:
        encodings: For each category column, a table float32 [cardinality, 2] with the smoothed mean
            label of each index (Micci-Barreca, 2001, doi:10.1145/507533.507538) and the total
            weight of its training rows, by which the trees can judge the mean.
        lists: The lists, each of which becomes a multi-hot vector.
        mean: float32 [C + K], or None if the columns are not scaled.
        std: float32 [C + K], positive, or None.
    """

    encodings: Mapping[int, Matrix] = field(default_factory=dict)
    lists: Sequence[HotList] = ()
    mean: Vector | None = None
    std: Vector | None = None

    def __call__(self, matrix: Matrix) -> Matrix:
        """Replace indices by means and append counts, float32 [B, C] -> float32 [B, C + K]."""
        if self.lists:
            matrix = matrix.copy()
            for part in self.lists:
                index = matrix[:, part.start : part.stop].astype(np.int64)
                matrix[:, part.start : part.stop] = 0
                for column in range(part.n_tokens):
                    is_there = (index == column + FIRST_TOKEN_INDEX).any(axis=1)
                    matrix[:, part.start + column] = is_there
                matrix[:, part.stop - 1] = (index != MISSING_INDEX).sum(axis=1)
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
        """Return the names of the C + K columns."""
        names = [feature.name for feature in schema.column_features]
        for part in self.lists:
            tokens = schema.items_of(schema.column_features[part.start]).vocabulary
            for column, token in enumerate(tokens[: part.n_tokens], start=part.start):
                names[column] += f"={token}"
        return [*names, *(f"{names[column]} (rows)" for column in self.encodings)]

    def save(self, folder: Path, schema: FeatureSchema) -> None:
        """Write those of the three JSON files that are in use."""
        if self.lists:
            (folder / LISTS_FILE).write_text(json.dumps(self.lists))
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
        """Load the files of :meth:`save`."""
        inputs = cls()
        if (path := folder / ENCODINGS_FILE).exists():
            tables = json.loads(path.read_text())
            inputs.encodings = {
                int(column): np.array(table, dtype=np.float32) for column, table in tables.items()
            }
        if (path := folder / LISTS_FILE).exists():
            inputs.lists = [HotList(*part) for part in json.loads(path.read_text())]
        if (path := folder / SCALER_FILE).exists():
            scaler = json.loads(path.read_text())
            inputs.mean = np.array(scaler["mean"], dtype=np.float32)
            inputs.std = np.array(scaler["std"], dtype=np.float32)
        return inputs


# Configuration of XGBoosterPredictFromDense: all trees, transformed output, NaN for missing.
_PREDICTION = (
    b'{"type": 0, "training": false, "iteration_begin": 0, "iteration_end": 0, '
    b'"missing": NaN, "strict_shape": false, "cache_id": 0}'
)


class DenseBooster:
    """Predicts through XGBoost's C API (https://xgboost.readthedocs.io/en/stable/c.html).

    ``Booster.inplace_predict`` of the Python package gives the same predictions, but takes more
    than twice the time for a small batch. Importing the package would also import scikit-learn and
    pandas if they are installed, which take 130 MB in every worker.

    Args:
        path: A file of ``Booster.save_model``.
        device: ``cpu`` or ``cuda``.

    Raises:
        FileNotFoundError: If XGBoost's shared library is not installed.
        RuntimeError: If XGBoost cannot load the file.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._library = ctypes.CDLL(str(_library_path()))
        self._library.XGBGetLastError.restype = ctypes.c_char_p
        self._booster = ctypes.c_void_p()
        self._check(self._library.XGBoosterCreate(None, ctypes.c_uint64(0), byref(self._booster)))
        weakref.finalize(self, self._library.XGBoosterFree, self._booster)
        for name, value in ((b"nthread", b"1"), (b"device", device.encode())):
            self._check(self._library.XGBoosterSetParam(self._booster, name, value))
        self._check(self._library.XGBoosterLoadModel(self._booster, bytes(path)))
        self._predict = self._library.XGBoosterPredictFromDense
        self._shape = ctypes.POINTER(ctypes.c_uint64)()
        self._n_dims = ctypes.c_uint64()
        self._result = ctypes.POINTER(ctypes.c_float)()
        self._outputs = [byref(self._shape), byref(self._n_dims), byref(self._result)]

    def __call__(self, matrix: Matrix) -> Vector:
        """Predict.

        Args:
            matrix: float32 [B, C]; NaN for missing.

        Returns:
            float32 [B].

        Raises:
            RuntimeError: If the number of columns is not that of the model.
        """
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        array = b'{"data": [%d, true], "shape": [%d, %d], "typestr": "<f4", "version": 3}' % (
            matrix.ctypes.data,
            *matrix.shape,
        )
        self._check(self._predict(self._booster, array, _PREDICTION, None, *self._outputs))
        # Copied, because the next prediction overwrites the booster's memory.
        return np.ctypeslib.as_array(self._result, (len(matrix),)).copy()

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"xgboost: {self._library.XGBGetLastError().decode()}")


def _library_path() -> Path:
    """Find the shared library in the Python package, without importing the package."""
    package = importlib.util.find_spec("xgboost")
    folders = package.submodule_search_locations if package else None
    for folder in folders or ():
        for path in Path(folder, "lib").glob("*xgboost.*"):
            return path
    raise FileNotFoundError(
        "xgboost: its shared library is not installed; run: pip install xgboost"
    )
