"""Smoothed mean labels for categories, out of fold so that no row sees its own label."""

import numpy as np
import numpy.typing as npt

from handlers.schema import FeatureSchema, Matrix

N_FOLDS = 5
# Weight of the overall mean, in rows: an id seen this often is trusted by half.
PRIOR_ROWS = 10.0

Vector = npt.NDArray[np.float32]


def fit_target_encodings(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, seed: int
) -> tuple[dict[int, Vector], Matrix]:
    """Learn an encoding of each category column.

    Args:
        schema: Of the matrix.
        matrix: Training split, float32 [B, C].
        labels: float32 [B].
        seed: Of the folds.

    Returns:
        By category column the mean label of each index, float32 [cardinality], for rows that
        training has not seen; and the training matrix, each row encoded without its own fold.
    """
    folds = np.random.default_rng(seed).integers(N_FOLDS, size=len(matrix))
    encodings, encoded = {}, matrix.copy()
    for column, feature in enumerate(schema.column_features):
        if feature.kind != "category":
            continue
        index = matrix[:, column].astype(np.int64)
        encodings[column] = _means(index, labels, feature.cardinality)
        for fold in range(N_FOLDS):
            held_out = folds == fold
            means = _means(index[~held_out], labels[~held_out], feature.cardinality)
            encoded[held_out, column] = means[index[held_out]]
    return encodings, encoded


def _means(index: npt.NDArray[np.int64], labels: Vector, cardinality: int) -> Vector:
    rows = np.bincount(index, minlength=cardinality)
    sums = np.bincount(index, weights=labels, minlength=cardinality)
    means: Vector = (sums + PRIOR_ROWS * labels.mean()) / (rows + PRIOR_ROWS)
    return means.astype(np.float32)
