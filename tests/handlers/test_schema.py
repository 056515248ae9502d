"""Columns of training and rows of serving give the same matrix, and a schema survives JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.counts import FeatureCounts
from handlers.feature import MISSING_INDEX, OOV_INDEX, Feature
from handlers.schema import FeatureSchema, Matrix
from handlers.values import to_token
from training.data import files
from training.data.features import fit_schema, to_matrix
from training.data.sources import DataError
from training.data.tables import read_table

SCHEMA = FeatureSchema(
    [
        Feature("age", train_range=(18.0, 65.0)),
        Feature("class", default=None, train_range=(0.0, 1.0)),
        Feature("price (EUR)", default=7.5),
        Feature("cross", default=None, product_of=("age", "class")),
        Feature("user.id", kind="category", vocabulary=("196", "anna", "-1", "1.5", "007")),
        Feature("item", kind="category", hash_buckets=1 << 20),
    ]
)
FEATURES = {feature.name: feature for feature in SCHEMA.features}

tokens = (
    st.sampled_from(
        ["196", "anna", "-1", "1.5", "007", "", "nobody", "196.0", "196.00", " 196", "1.96e2"]
    )
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.sampled_from([196, 196.0, -1.0, 1.5, 7])
    | st.text()
)
values = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
rows = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.none() | (tokens if feature.kind == "category" else values)
            for name, feature in FEATURES.items()
        },
    ),
    min_size=1,
    max_size=8,
)


def served(schema: FeatureSchema, rows: list[dict[str, Any]]) -> Matrix:
    """Encode rows as a handler encodes those of a request."""
    decoded = msgspec.json.decode(
        msgspec.json.encode(rows),
        type=list[schema.row_type(forbid_unknown=True)],  # type: ignore[misc]
    )
    return schema.matrix(schema.raw_matrix(decoded))


def trained(schema: FeatureSchema, rows: list[dict[str, Any]]) -> Matrix:
    """Encode rows as training encodes those of a file, where tokens are text."""
    frame = pd.DataFrame(rows, columns=list(schema.names))
    for feature in schema.features:
        column = frame[feature.name]
        if feature.kind == "number":
            frame[feature.name] = column.astype(np.float64)
        else:
            frame[feature.name] = column.map(to_token, na_action="ignore")
    return to_matrix(schema, frame)


@settings(max_examples=300, deadline=None)
@given(rows=rows)
def test_rows_of_a_request_and_columns_of_a_file_give_the_same_matrix(
    rows: list[dict[str, Any]],
) -> None:
    matrix = served(SCHEMA, rows)
    np.testing.assert_array_equal(matrix, trained(SCHEMA, rows))
    assert matrix.dtype == np.float32
    assert not np.isinf(matrix).any()
    default_is_none = np.array([f.default is None for f in SCHEMA.column_features])
    assert not np.isnan(matrix[:, ~default_is_none]).any()


@settings(max_examples=100, deadline=None)
@given(rows=rows)
def test_vector_gives_the_same_matrix_as_the_object(rows: list[dict[str, Any]]) -> None:
    vectors: Any = [[row.get(name) for name in SCHEMA.names] for row in rows]
    np.testing.assert_array_equal(served(SCHEMA, vectors), served(SCHEMA, rows))


@settings(max_examples=100, deadline=None)
@given(
    features=st.lists(
        st.builds(
            Feature,
            name=st.text(min_size=1),
            default=st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
            train_range=st.none() | st.tuples(st.floats(-9, 0), st.floats(0, 9)),
        )
        | st.builds(
            Feature,
            name=st.text(min_size=1),
            kind=st.just("category"),
            vocabulary=st.lists(st.text(), unique=True).map(tuple),
        ),
        min_size=1,
        unique_by=lambda feature: feature.name,
    )
)
def test_schema_survives_json(features: list[Feature]) -> None:
    schema = FeatureSchema(features)
    text = json.dumps([schema.to_json(), schema.vocabularies()])
    assert FeatureSchema.from_json(*json.loads(text)).features == schema.features


def test_cross_features_survive_json() -> None:
    text = json.dumps([SCHEMA.to_json(), SCHEMA.vocabularies()])
    assert FeatureSchema.from_json(*json.loads(text)).features == SCHEMA.features


def test_vocabulary_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"user\.id: expected a vocabulary of 5 tokens, got 1"):
        FeatureSchema.from_json(SCHEMA.to_json(), {"user.id": ["196"]})


@pytest.mark.parametrize("token", [196, 196.0, "196", "196.0"])
def test_every_spelling_of_an_id_is_the_same_token(token: str | float) -> None:
    assert served(SCHEMA, [{"user.id": token}])[0, 4] == 2


@pytest.mark.parametrize("cells", ["1.0 1.0 2.5 2.5 NA NA", "1 1.0 2.5 2.5 NA NA"])
def test_a_category_is_the_same_in_a_file_and_in_a_request(tmp_path: Path, cells: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["c", *cells.split()]))
    frame = read_table(files.find(str(path)).table, [], ["c"])
    schema = fit_schema(frame, [Feature("c", kind="category")])
    trained = to_matrix(schema, frame)[:, 0].tolist()
    for sent in ([1, 1, 2.5, 2.5, "NA", "NA"], cells.split()):
        assert served(schema, [{"c": token} for token in sent])[:, 0].tolist() == trained
    assert trained[0] == trained[1] >= 2
    assert min(trained) >= 2


def test_unknown_and_missing_tokens_have_their_own_indices() -> None:
    matrix = served(SCHEMA, [{"user.id": "nobody"}, {"user.id": 7}, {"user.id": None}, {}])
    assert matrix[:, 4].tolist() == [OOV_INDEX, OOV_INDEX, MISSING_INDEX, MISSING_INDEX]
    assert matrix[2:, 5:].tolist() == [[MISSING_INDEX] * 2] * 2


@pytest.mark.parametrize("token", [196, 196.0, "196.0"])
def test_every_spelling_of_an_id_has_the_same_hashes(token: str | float) -> None:
    row = served(SCHEMA, [{"item": token}, {"item": "196"}])
    assert row[0, 5:].tolist() == row[1, 5:].tolist()


def test_hashed_ids_are_stable() -> None:
    [[first, second]] = served(SCHEMA, [{"item": "item_1"}])[:, 5:]
    assert (first, second) == (271996, 191151)


@pytest.mark.parametrize(
    ("row", "cross"),
    [
        ({"age": 30, "class": 0.5}, 15.0),
        ({"age": 30, "class": 0.5, "cross": 99}, 99.0),
        ({"class": 0.5}, 0.0),
        ({"age": 30}, math.nan),
        ({"age": 3e38, "class": 3e38}, math.nan),
        ({"age": 30, "class": 0.5, "cross": 1e300}, 15.0),
    ],
)
def test_cross_feature_is_used_as_given_or_computed(row: dict[str, float], cross: float) -> None:
    assert served(SCHEMA, [row])[0, 3] == pytest.approx(cross, nan_ok=True)


def test_unusual_values_are_counted() -> None:
    counts = FeatureCounts.zeros(len(SCHEMA.features))
    nan = math.nan
    raw = SCHEMA.raw_columns(
        {
            "age": [30, 17, 1e300, nan],
            "class": [0, 1, nan, nan],
            "user.id": ["anna", "nobody", None, "196"],
            "item": ["a", "b", None, "c"],
        }
    )
    SCHEMA.matrix(raw, counts)
    assert counts.out_of_range.tolist() == [2, 0, 0, 0, 0, 0]
    assert counts.missing.tolist() == [1, 2, 4, 0, 1, 1]
    assert counts.out_of_vocabulary.tolist() == [0, 0, 0, 0, 1, 0]


def test_default_is_none_only_where_training_saw_missing_cells() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, np.nan], "b": [1.0, 2.0, 3.0], "c": ["x", "x", "y"]})
    a, b, c = fit_schema(
        frame, [Feature("a"), Feature("b"), Feature("c", kind="category")]
    ).features
    assert (a.default, a.train_range) == (None, (1.0, 2.0))
    assert (b.default, b.train_range) == (0.0, (1.0, 3.0))
    assert c.vocabulary == ("x",)  # Tokens that occur twice or more.


@pytest.mark.parametrize("name", ['a"', "a\\", "a\n"])
def test_column_with_a_name_that_requests_cannot_contain_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="expected names without quotes, backslashes"):
        fit_schema(pd.DataFrame({name: [1.0]}), [Feature(name)])


@pytest.mark.parametrize(
    "features",
    [
        [],
        [Feature("a"), Feature("a")],
        [Feature("a"), Feature("x", product_of=("a", "b"))],
        [Feature("a"), Feature("b", kind="category"), Feature("x", product_of=("a", "b"))],
    ],
)
def test_invalid_schema_is_refused(features: list[Feature]) -> None:
    with pytest.raises(ValueError, match=r"expected distinct|is not two numbers"):
        FeatureSchema(features)
