"""Request rows are encoded as training encodes its data."""

from __future__ import annotations

import numpy as np
import pandas as pd

from handlers.feature import Feature
from training.data.features import fit_schema, to_matrix
from training.tasks.next_item.rows import encode_rows, history_rows


def test_rows_that_are_encoded_again_are_what_they_were_made_of() -> None:
    users = pd.DataFrame({"age": [30, np.nan, 41], "city": ["rome", "oslo", "rome"]})
    schema = fit_schema(users, [Feature("age"), Feature("city", kind="category")])
    histories = [np.array([3, 2, 1]), np.array([], dtype=np.int64), np.array([2])]
    rows = history_rows(schema, users, histories, ["x", "y"])
    matrix, encoded = encode_rows(schema, ["x", "y"], rows)
    np.testing.assert_array_equal(matrix, to_matrix(schema, users))
    assert [history.tolist() for history in encoded] == [[3, 2, 1], [], [2]]


def test_bare_features_are_a_row_without_a_history() -> None:
    users = pd.DataFrame({"age": [30, 41]})
    schema = fit_schema(users, [Feature("age")])
    matrix, histories = encode_rows(schema, ["x", "y"], [{"age": 30}, {"user_features": {}}])
    assert matrix[0].tolist() == [30]
    assert [history.tolist() for history in histories] == [[], []]
