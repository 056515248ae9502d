"""XGBoost's parameters follow from the flags, and a wrong one is named before training starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tyro
import xgboost as xgb

from handlers.feature import Feature
from handlers.schema import FeatureSchema
from training.engine.boosting import MatrixBatches, Rows
from training.engine.tree_parameters import (
    Array,
    BoostConfig,
    booster_parameters,
    leaf_limit,
    monotone_constraints,
)
from training.engine.worker import TrainingError

SCHEMA = FeatureSchema(
    [
        Feature("price:eur"),
        Feature("user_id", kind="category", hash_buckets=8),
        Feature("ctr"),
    ]
)


@pytest.mark.parametrize(
    "flags",
    [
        ["--param", "lambda=2", "grow_policy=lossguide", "lambdarank_unbiased=TRUE", "alpha=.5"],
        [
            *("--param", "reg_lambda=2", "--param", "grow_policy=lossguide", "alpha=.5"),
            *("--param", "lambdarank_unbiased=true"),
        ],
    ],
)
def test_parameters_may_be_given_together_or_one_by_one(flags: list[str]) -> None:
    config = tyro.cli(BoostConfig, args=[*flags, "--objective", "rank:ndcg"])
    parameters = booster_parameters(config)
    assert parameters["lambda"] == 2
    assert parameters["alpha"] == 0.5
    assert parameters["grow_policy"] == "lossguide"
    assert parameters["lambdarank_unbiased"] is True
    assert parameters["max_depth"] == 5


def test_a_parameter_wins_over_the_flag_and_its_cap() -> None:
    pairs = ("learning_rate=0.3", "max_depth=2", "min_child_weight=70")
    config = BoostConfig(param=(pairs,), eta=0.1, max_depth=7)
    parameters = booster_parameters(config)
    assert parameters["eta"] == 0.3
    assert "learning_rate" not in parameters
    assert parameters["max_depth"] == 2
    assert leaf_limit(config, labels(100), np.ones(100, dtype=np.float32))[0] == 70


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("max_dpeth=3", "--param max_dpeth: XGBoost has no such parameter; did you mean max_depth"),
        ("zzz=3", "no such parameter; there are .*max_depth"),
        ("rate_drop=.1", "does not use it with binary:logistic"),
        ("max_depth=deep", "--param max_depth=deep: .*max_depth expect int"),
        ("eta=-1", "--param eta=-1: .*should be greater equal to 0"),
        ("tree_method=zip", "valid values are"),
        ("booster=gblinear", "booster=gblinear: XGBoost refuses it"),
        ("verbosity=0 zzz=1", "no such parameter"),
        ("objective=rank:ndcg", "use --objective"),
        ("device=cuda", "use --device"),
        ("max_depth", 'expected key=value, got "max_depth"'),
        ("max_depth=", 'expected key=value, got "max_depth="'),
        ("=3", 'expected key=value, got "=3"'),
    ],
)
def test_a_wrong_parameter_is_named(pair: str, expected: str) -> None:
    with pytest.raises(TrainingError, match=expected):
        booster_parameters(BoostConfig(param=(tuple(pair.split()),)))


def test_constraints_stand_at_the_columns_of_their_features() -> None:
    flags = ["price:eur:-1", "ctr:1"]
    assert monotone_constraints(flags, SCHEMA, 6) == {"monotone_constraints": "(-1,0,0,1,0,0)"}
    assert monotone_constraints([], SCHEMA, 6) == {}


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("ctr", 'expected name:1 or name:-1, got "ctr"'),
        ("ctr:2", 'expected name:1 or name:-1, got "ctr:2"'),
        ("ctr:0", "expected name:1 or name:-1"),
        (":1", "expected name:1 or name:-1"),
        ("user_id:1", "expected a number, user_id is none; the numbers are price:eur, ctr"),
        ("price:1", "expected a number, price is not among --features"),
    ],
)
def test_a_wrong_constraint_is_named(flag: str, expected: str) -> None:
    with pytest.raises(TrainingError, match=expected):
        monotone_constraints([flag], SCHEMA, 6)


@pytest.mark.parametrize(("n_rows", "share"), [(100, 0.075), (1_000_000, 0.015)])
def test_a_leaf_of_rows_with_hidden_categories_is_always_large_enough(
    n_rows: int, share: float
) -> None:
    weight, hidden = leaf_limit(BoostConfig(), labels(n_rows), np.ones(n_rows, dtype=np.float32))
    assert hidden == pytest.approx(share)
    assert hidden * 0.8 * n_rows / 4 > weight


def test_the_cap_of_a_leaf_counts_the_weights() -> None:
    # Nine of ten negatives were dropped: the others count for them, so the rate is 1/11.
    weights = np.tile([10.0, 1.0], 500).astype(np.float32)
    limit, _ = leaf_limit(BoostConfig(), labels(1_000), weights / weights.mean())
    assert limit == pytest.approx(0.04 * 1_000 * 10 / 11**2)


def labels(n: int) -> Array:
    """Return as many 0 as 1."""
    return np.tile([0.0, 1.0], n // 2).astype(np.float32)


def rows(n: int) -> Rows:
    """Draw rows in groups of different sizes, not in order."""
    rng = np.random.default_rng(0)
    groups = np.array([f"s{i}" for i in rng.integers(n // 7, size=n)])
    clicks = (groups > "s5").astype(np.float32)
    return Rows(rng.random((n, 2)).astype(np.float32), clicks, groups=groups)


@pytest.mark.parametrize("batch_size", [1, 10, 333, 1_000, 5_000])
def test_batches_cut_no_group(batch_size: int) -> None:
    together = rows(1_000).sorted_by_group()
    data = xgb.QuantileDMatrix(MatrixBatches(together.batches(batch_size)))
    assert data.num_row() == 1_000
    assert together.groups is not None
    sizes: Any = np.diff(data.get_uint_info("group_ptr"))
    assert sizes.tolist() == np.bincount(together.groups).tolist()


def test_workers_share_whole_groups() -> None:
    whole = rows(1_000)
    shares = whole.sorted_by_group().shares(3)
    assert sum(len(share.labels) for share in shares) == 1_000
    seen = [set(share.groups.tolist()) for share in shares if share.groups is not None]
    assert len(seen) == 3
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
