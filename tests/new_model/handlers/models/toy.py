"""Logistic regression (Cox, 1958), as small as a model can be.

Shapes: B instances, C matrix columns.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

ARCH_VERSION = 1
META_FILE = "toy_meta.json"
WEIGHTS_FILE = "toy_weights.json"


@dataclass(frozen=True)
class Toy:
    """A weight for each matrix column.

    Attributes:
        weights: Weights of the raw columns, C of them.
        bias: Log-odds of an instance whose columns are all 0.
    """

    weights: list[float]
    bias: float

    def __call__(self, matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Predict click probabilities, float32 [B, C] -> float32 [B]."""
        logits = matrix.astype(np.float64) @ np.array(self.weights) + self.bias
        probabilities: npt.NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
        return probabilities

    def save(self, folder: Path) -> None:
        """Write the weights file."""
        (folder / WEIGHTS_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Toy:
        """Read the weights file."""
        return cls(**json.loads((folder / WEIGHTS_FILE).read_text()))
