"""Trees see a category as its mean label and the number of rows behind that mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handlers.feature import FIRST_TOKEN_INDEX, MISSING_INDEX, OOV_INDEX, Feature
from handlers.models.xgb import TreeInputs
from handlers.schema import FeatureSchema
from training.metrics.ranking import auc
from training.tasks.ranking.target_encoding import (
    PRIOR_ROWS,
    fit_target_encodings,
    hide_categories,
)

N_IDS = 400
SCHEMA = FeatureSchema(
    [
        Feature("price"),
        Feature("item_id", kind="category", vocabulary=tuple(f"i{i}" for i in range(N_IDS))),
    ]
)
RNG = np.random.default_rng(0)
MATRIX = np.column_stack(
    [RNG.normal(size=2_000), RNG.integers(N_IDS, size=2_000) + FIRST_TOKEN_INDEX]
).astype(np.float32)
NOISE = RNG.integers(2, size=2_000).astype(np.float32)
ONES = np.ones(2_000, dtype=np.float32)


def test_training_matrix_does_not_leak_the_labels() -> None:
    inputs, encoded = fit_target_encodings(SCHEMA, MATRIX, NOISE, ONES, seed=0)
    assert auc(NOISE, inputs(MATRIX)[:, 1]) > 0.7  # in-fold means leak
    assert auc(NOISE, encoded[:, 1]) == pytest.approx(0.5, abs=0.03)


def test_category_becomes_its_smoothed_mean_and_row_count(tmp_path: Path) -> None:
    inputs, encoded = fit_target_encodings(SCHEMA, MATRIX, NOISE, ONES, seed=0)
    inputs.save(tmp_path, SCHEMA)
    item = MATRIX[0, 1]
    seen = NOISE[MATRIX[:, 1] == item]
    mean = (seen.sum() + PRIOR_ROWS * NOISE.mean()) / (len(seen) + PRIOR_ROWS)
    rows = np.array([[0.5, item], [0.5, OOV_INDEX]], dtype=np.float32)
    expected = [[0.5, mean, len(seen)], [0.5, NOISE.mean(), 0]]
    assert TreeInputs.load(tmp_path)(rows) == pytest.approx(np.array(expected), rel=1e-6)
    assert inputs.column_names(SCHEMA) == ["price", "item_id", "item_id (rows)"]
    assert encoded[0, [0, 2]].tolist() == [MATRIX[0, 0], len(seen)]


def test_a_list_becomes_indicators_of_its_frequent_tokens_and_its_length(tmp_path: Path) -> None:
    schema = FeatureSchema(
        [
            Feature("tags", kind="multi", vocabulary=("a", "b", "c"), max_length=3),
            Feature("price"),
            Feature("seen", kind="history", items="item", max_length=4),
            Feature("item", kind="category", vocabulary=("x",)),
            Feature("open", kind="multi", hash_buckets=9, max_length=2),
        ]
    )
    matrix = schema.encode(
        [
            {"tags": ["c", "b", "b"], "price": 2, "seen": ["x", "y"], "item": "x", "open": ["p"]},
            {"tags": ["a", "nobody's"], "seen": ["y"], "open": ["p", "q"]},
            {"tags": []},
        ]
    )
    inputs, encoded = fit_target_encodings(
        schema, matrix, NOISE[:3], np.ones(3, dtype=np.float32), seed=0
    )
    assert inputs.lists == [(0, 3, 2), (4, 8, 1), (9, 13, 0)]
    by_hand = [
        # a, b, length | price | x, -, -, length | item | -, -, -, hashes
        [0, 1, 3, 2, 1, 0, 0, 2, 0, 0, 0, 2],
        [1, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 4],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert np.delete(encoded, [8, 13], axis=1).tolist() == by_hand
    names = inputs.column_names(schema)
    assert names[:9] == ["tags=a", "tags=b", "tags", "price", "seen=x", *["seen"] * 3, "item"]
    inputs.save(tmp_path, schema)
    assert (TreeInputs.load(tmp_path)(matrix) == inputs(matrix)).all()


@pytest.mark.parametrize("n_rows", [2, 3, 200])
def test_one_positive_label_is_enough(n_rows: int) -> None:
    labels = np.zeros(n_rows, dtype=np.float32)
    labels[1] = 1.0
    inputs, encoded = fit_target_encodings(SCHEMA, MATRIX[:n_rows], labels, ONES[:n_rows], seed=0)
    assert inputs.encodings[1].dtype == encoded.dtype == np.float32
    assert inputs.encodings[1].shape == (N_IDS + FIRST_TOKEN_INDEX, 2)
    assert inputs.encodings[1][:, 1].sum() == n_rows
    assert encoded.shape == (n_rows, 3)
    assert np.isfinite(encoded).all()


def test_matrix_without_categories_stays_as_it_is() -> None:
    inputs, encoded = fit_target_encodings(
        FeatureSchema([Feature("price")]), MATRIX[:, :1], NOISE, ONES, seed=0
    )
    assert inputs.encodings == {}
    assert np.array_equal(encoded, MATRIX[:, :1])


def test_seed_determines_the_folds() -> None:
    first, again, other = (
        fit_target_encodings(SCHEMA, MATRIX, NOISE, ONES, seed=seed)[1] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_hidden_categories_are_a_share_with_the_mean_label_of_all() -> None:
    two = FeatureSchema([*SCHEMA.features, Feature("user_id", kind="category", hash_buckets=64)])
    users = RNG.integers(64, size=(2_000, 2)) + FIRST_TOKEN_INDEX
    matrix = np.column_stack([MATRIX, users]).astype(np.float32)
    hidden = hide_categories(two, matrix, NOISE, 0.05, seed=0)
    changed = hidden != matrix
    assert (hidden[changed] == OOV_INDEX).all()
    assert not changed[:, 0].any()
    assert (changed[:, 2] == changed[:, 3]).all()  # both columns of a hashed category
    item, user = changed[:, 1], changed[:, 2]
    for lost, share in ((item, 0.05), (user, 0.05), (item & user, 0.033), (item & ~user, 0.017)):
        assert lost.mean() == pytest.approx(share, abs=0.002)
        assert NOISE[lost].mean() == pytest.approx(NOISE.mean(), abs=0.03)
    assert np.array_equal(hidden, hide_categories(two, matrix, NOISE, 0.05, seed=0))
    assert not np.array_equal(hidden, hide_categories(two, matrix, NOISE, 0.05, seed=1))


def test_a_hidden_list_keeps_its_length() -> None:
    tags = Feature("tags", kind="multi", vocabulary=("a", "b"), max_length=4)
    matrix = np.tile(np.array([2, 3, 3, MISSING_INDEX], dtype=np.float32), (400, 1))
    hidden = hide_categories(FeatureSchema([tags]), matrix, NOISE[:400], 0.06, seed=0)
    changed = (hidden != matrix).any(axis=1)
    assert changed.sum() == 24
    assert np.unique(hidden[changed], axis=0).tolist() == [[1, 1, 1, 0]]


def test_unknown_rows_look_the_same_in_training_and_serving() -> None:
    hidden = hide_categories(SCHEMA, MATRIX, NOISE, 0.05, seed=0)
    inputs, encoded = fit_target_encodings(SCHEMA, hidden, NOISE, ONES, seed=0)
    unknown = hidden[:, 1] == OOV_INDEX
    assert unknown.sum() == 100
    assert np.array_equal(encoded[unknown], inputs(hidden[unknown]))
    assert (encoded[unknown, 2] == 0).all()


def test_a_weight_of_2_counts_as_much_as_the_row_twice() -> None:
    weights = RNG.integers(1, 3, size=2_000)
    twice = np.repeat(np.arange(2_000), weights)
    weighted, _ = fit_target_encodings(SCHEMA, MATRIX, NOISE, weights.astype(np.float32), seed=0)
    repeated, _ = fit_target_encodings(
        SCHEMA, MATRIX[twice], NOISE[twice], np.ones(len(twice), dtype=np.float32), seed=0
    )
    assert weighted.encodings[1] == pytest.approx(repeated.encodings[1])
