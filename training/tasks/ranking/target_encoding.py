"""Target encodings of categories, learned without leaking a row's own label.

Shapes: B rows, C matrix columns, K of them categories.
"""

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold

from handlers.feature import LISTS, MISSING_INDEX, OOV_INDEX
from handlers.models.xgb import HotList, TreeInputs
from handlers.schema import FeatureSchema, Matrix
from training.tasks.ranking.weights import RowWeights

N_FOLDS = 5
# Weight of the overall mean, in rows: the mean of an id seen this often counts for half.
PRIOR_ROWS = 10.0

Vector = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def fit_target_encodings(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, weights: RowWeights, seed: int
) -> tuple[TreeInputs, Matrix]:
    """Learn an encoding of each category column.

    Args:
        schema: Schema of the matrix.
        matrix: Training split, float32 [B, C].
        labels: Labels, float32 [B].
        weights: Weights of the rows, float32 [B].
        seed: Seed of the folds.

    Returns:
        The inputs, with encodings for rows that training has not seen; and the training matrix
        with each row's means learned from the other folds only, float32 [B, C + K].
        Out-of-vocabulary tokens count 0 rows, and their mean is the same in both.
    """
    cardinalities = schema.category_columns
    indices = {column: matrix[:, column].astype(np.int64) for column in cardinalities}
    encodings = {
        column: _encoding(index, labels, weights, cardinalities[column])
        for column, index in indices.items()
    }
    for encoding in encodings.values():
        encoding[OOV_INDEX, 1] = 0
    inputs = TreeInputs(encodings, HotList.all_of(schema))
    encoded = inputs(matrix)
    if not indices:
        return inputs, encoded
    folds = KFold(min(N_FOLDS, len(matrix)), shuffle=True, random_state=seed)
    for others, fold in folds.split(matrix):
        for column, index in indices.items():
            # A mean that all unknown rows share tells none of them its label.
            rows = fold[index[fold] != OOV_INDEX]
            learned = _encoding(
                index[others], labels[others], weights[others], cardinalities[column]
            )
            encoded[rows, column] = learned[index[rows], 0]
    return inputs, encoded


def _encoding(index: Indices, labels: Vector, weights: RowWeights, cardinality: int) -> Matrix:
    """Compute the smoothed mean label and the total weight of each index, [cardinality, 2]."""
    rows = np.bincount(index, weights, cardinality)
    positives = np.bincount(index, weights * labels, cardinality)
    means = (positives + PRIOR_ROWS * positives.sum() / rows.sum()) / (rows + PRIOR_ROWS)
    return np.column_stack([means, rows]).astype(np.float32)


def hide_categories(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, share: float, seed: int
) -> Matrix:
    """Make some categories out-of-vocabulary, so that the trees learn what to predict for those.

    Lists count as categories, and lose all their values. Of four rows that lose categories, two
    lose all, and the other two lose one half of them each.

    Args:
        schema: Schema of the matrix.
        matrix: Split, float32 [B, C].
        labels: Labels, float32 [B]; the rows that lose a category have the mean label of all.
        share: Share of the rows that each category is hidden in.
        seed: Seed of the rows.

    Returns:
        A copy, float32 [B, C]; the matrix itself if it has no categories.
    """
    kinds = ("category", *LISTS)
    columns = [schema.columns[f.name] for f in schema.features if f.kind in kinds]
    if not columns:
        return matrix
    matrix, rng = matrix.copy(), np.random.default_rng(seed)
    # At even distances in the order of the labels: few rows, too, have the mean label of all.
    order = np.lexsort((rng.random(len(labels)), labels))
    n = round(share / 0.75 * len(labels))
    rows = order[((np.arange(n) + rng.random()) * len(labels) / max(n, 1)).astype(np.int64)]
    half = np.tile(np.arange(len(columns)) < len(columns) / 2, (n // 4 + 1, 1))
    half, every = rng.permuted(half, axis=1), np.ones_like(half)
    hidden = np.stack([every, half, every, ~half], axis=1).reshape(-1, len(columns))[:n]
    for part, lost in zip(columns, hidden.T, strict=True):
        index = matrix[rows[lost], part]
        matrix[rows[lost], part] = np.where(index == MISSING_INDEX, index, OOV_INDEX)
    return matrix


def keep_encodings(
    before: TreeInputs, inputs: TreeInputs, matrix: Matrix, encoded: Matrix
) -> Matrix:
    """Keep the encodings of an earlier version, which its trees split on.

    Indices that it had no rows of get those of this version.

    Args:
        before: The inputs of the earlier version, whose vocabularies come first.
        inputs: The inputs of this one, changed in place.
        matrix: Training split, float32 [B, C].
        encoded: The same with encodings of this version, float32 [B, C + K].

    Returns:
        The training matrix with the encodings to train on, float32 [B, C + K].
    """
    encoded, tables = encoded.copy(), dict(inputs.encodings)
    for k, (column, old) in enumerate(before.encodings.items()):
        is_kept = np.zeros(len(tables[column]), dtype=bool)
        is_kept[: len(old)] = old[:, 1] > 0
        table = tables[column].copy()
        table[is_kept] = old[old[:, 1] > 0]
        tables[column] = table
        index = matrix[:, column].astype(np.int64)
        rows = np.flatnonzero(is_kept[index])
        encoded[rows, column] = table[index[rows], 0]
        encoded[rows, matrix.shape[1] + k] = table[index[rows], 1]
    inputs.encodings = tables
    return encoded
