"""Mean labels and counts of categories, the means out of fold: no row sees its own label."""

import numpy as np
import numpy.typing as npt

from handlers.models.xgb import TreeInputs
from handlers.schema import FeatureSchema, Matrix

N_FOLDS = 10
# Weight of the overall mean, in rows: an id seen this often is trusted by half.
PRIOR_ROWS = 10.0

Vector = npt.NDArray[np.float32]


def fit_target_encodings(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, seed: int
) -> tuple[dict[int, Matrix], Matrix]:
    """Learn an encoding of each category column.

    Args:
        schema: Of the matrix, which has C columns, K of them categories.
        matrix: Training split, float32 [B, C].
        labels: float32 [B].
        seed: Of the folds.

    Returns:
        The encodings of :class:`handlers.models.xgb.TreeInputs`, for rows that training has not
        seen; and the training matrix as it would be mapped by them, had the means of each row been
        learned without its own fold, float32 [B, C + K].
    """
    folds = np.random.default_rng(seed).integers(N_FOLDS, size=len(matrix))
    encodings: dict[int, Matrix] = {}
    held_out_means = {}
    for column, feature in enumerate(schema.column_features):
        if feature.kind != "category":
            continue
        index = matrix[:, column].astype(np.int64)
        encodings[column] = _table(index, labels, feature.cardinality)
        held_out_means[column] = np.empty(len(matrix), dtype=np.float32)
        for fold in range(N_FOLDS):
            held_out = folds == fold
            table = _table(index[~held_out], labels[~held_out], feature.cardinality)
            held_out_means[column][held_out] = table[index[held_out], 0]
    encoded = TreeInputs(encodings)(matrix)
    for column, means in held_out_means.items():
        encoded[:, column] = means
    return encodings, encoded


def _table(index: npt.NDArray[np.int64], labels: Vector, cardinality: int) -> Matrix:
    """Smoothed mean label and number of rows of each index, float32 [cardinality, 2]."""
    rows = np.bincount(index, minlength=cardinality)
    sums = np.bincount(index, weights=labels, minlength=cardinality)
    means = (sums + PRIOR_ROWS * labels.mean()) / (rows + PRIOR_ROWS)
    return np.column_stack([means, rows]).astype(np.float32)
