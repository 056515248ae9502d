"""Mean labels and row counts of categories, the means out of fold: no row sees its own label."""

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import KFold
from sklearn.preprocessing import TargetEncoder

from handlers.models.xgb import HotList, TreeInputs
from handlers.schema import FeatureSchema, Matrix

N_FOLDS = 10
# Weight of the overall mean, in rows: the mean of an id seen this often counts for half.
PRIOR_ROWS = 10.0

Vector = npt.NDArray[np.float32]


def fit_target_encodings(
    schema: FeatureSchema, matrix: Matrix, labels: Vector, seed: int
) -> tuple[TreeInputs, Matrix]:
    """Learn an encoding of each category column.

    Args:
        schema: Schema of the matrix, which has C columns, K of them categories.
        matrix: Training split, float32 [B, C], B at least 2.
        labels: Labels, float32 [B].
        seed: Seed of the folds.

    Returns:
        The inputs, with encodings for rows that training has not seen; and the training matrix
        with each row's means learned from the other folds only, float32 [B, C + K].
    """
    cardinalities, lists = schema.category_columns, HotList.all_of(schema)
    if not cardinalities:
        inputs = TreeInputs(lists=lists)
        return inputs, inputs(matrix)
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
    inputs = TreeInputs(encodings, lists)
    encoded = inputs(matrix)
    encoded[:, columns] = held_out_means
    return inputs, encoded
