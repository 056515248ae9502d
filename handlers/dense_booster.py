"""An XGBoost booster, called without what its Python method does around each call.

XGBoost imports scikit-learn, and with it pandas, where it finds them: 130 MB of a worker's memory
that it never uses.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

_without_sklearn = "sklearn" not in sys.modules
if _without_sklearn:
    sys.modules["sklearn"] = None  # type: ignore[assignment]
import xgboost  # noqa: E402
import xgboost.core  # noqa: E402

if _without_sklearn:
    del sys.modules["sklearn"]

_PREDICTION = (
    b'{"type": 0, "training": false, "iteration_begin": 0, "iteration_end": 0, '
    b'"missing": NaN, "strict_shape": false, "cache_id": 0}'
)


class DenseBooster:
    """Predicts like ``Booster.inplace_predict``, which takes twice the time on a small batch.

    Calls ``XGBoosterPredictFromDense`` of XGBoost's C API.

    Args:
        path: What ``Booster.save_model`` wrote.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, path: Path, device: str) -> None:
        self._booster = xgboost.Booster({"nthread": 1, "device": device})
        self._booster.load_model(path)
        self._predict = xgboost.core._LIB.XGBoosterPredictFromDense
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
        xgboost.core._check_call(status)
        # The booster's own memory, which its next prediction overwrites.
        return np.ctypeslib.as_array(self._result, (len(matrix),)).copy()
