"""Mean labels and row counts of categories, the means out of fold: no row sees its own label."""

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold
from sklearn.preprocessing import TargetEncoder

from handlers.models.xgb import TreeInputs
from handlers.schema import OOV_INDEX, FeatureSchema, Matrix

N_FOLDS = 10
# Weight of the overall mean, in rows: the mean of an id seen this often counts for half.
PRIOR_ROWS = 10.0

Vector = npt.NDArray[np.float32]


def fit_target_encodings(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, seed: int
) -> tuple[dict[int, Matrix], Matrix]:
    """Learn an encoding of each category column.

    Args:
        schema: Schema of the matrix, which has C columns, K of them categories.
        matrix: Training split, float32 [B, C], B at least 2.
        labels: Labels, float32 [B].
        seed: Seed of the folds.

    Returns:
        The encodings of :class:`handlers.models.xgb.TreeInputs`, by category column float32
        [cardinality, 2], for rows that training has not seen; and the training matrix with each
        row's means learned from the other folds only, float32 [B, C + K]. Out-of-vocabulary
        tokens count 0 rows, and their mean is the same in both.
    """
    cardinalities = {column: n for column, n in enumerate(schema.cardinalities) if n}
    if not cardinalities:
        return {}, matrix
    columns = list(cardinalities)
    indices = matrix[:, columns].astype(np.int64)  # [B, K]
    encoder = TargetEncoder(
        categories=[np.arange(n) for n in cardinalities.values()],
        # The folds of a "binary" target are stratified, which fails with few positive labels.
        target_type="continuous",
        smooth=PRIOR_ROWS,
        cv=KFold(min(N_FOLDS, len(matrix)), shuffle=True, random_state=seed),
    )
    held_out_means = encoder.fit_transform(indices, labels.astype(np.float64))  # [B, K]
    encodings = {
        column: np.column_stack([means, np.bincount(index, minlength=len(means))]).astype(
            np.float32
        )
        for column, means, index in zip(columns, encoder.encodings_, indices.T, strict=True)
    }
    for table in encodings.values():
        table[OOV_INDEX, 1] = 0
    encoded = TreeInputs(encodings)(matrix)
    # A mean that all unknown rows share tells none of them its label, so it needs no folds.
    encoded[:, columns] = np.where(indices == OOV_INDEX, encoded[:, columns], held_out_means)
    return encodings, encoded


def hide_categories(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, share: float, seed: int
) -> Matrix:
    """Make some categories out-of-vocabulary, so that the trees learn what to predict for those.

    A share of the rows loses each category on its own and, if there are several, another share
    loses all of them: trees that saw unknown users only with known items cannot tell what to
    predict for an unknown user and an unknown item.

    Args:
        schema: Schema of the matrix.
        matrix: Split, float32 [B, C].
        labels: Labels, float32 [B]; the rows that lose a category have the mean label of all.
        share: Share of the rows.
        seed: Seed of the rows.

    Returns:
        A copy, float32 [B, C]; the matrix itself if it has no categories.
    """
    by_feature = [
        list(range(start, start + feature.width))
        for feature, start in zip(schema.features, schema.starts.tolist(), strict=True)
        if feature.kind == "category"
    ]
    if not by_feature:
        return matrix
    all_columns = [column for columns in by_feature for column in columns]
    matrix, rng = matrix.copy(), np.random.default_rng(seed)
    for columns in [all_columns, *(by_feature if len(by_feature) > 1 else [])]:
        matrix[_sample(labels, share, rng)[:, None], columns] = OOV_INDEX
    return matrix


def _sample(labels: Vector, share: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw a share of the row numbers, at even distances in the order of the labels."""
    order = np.lexsort((rng.random(len(labels)), labels))
    n = round(share * len(labels))
    return order[((np.arange(n) + rng.random()) * len(labels) / max(n, 1)).astype(np.int64)]
