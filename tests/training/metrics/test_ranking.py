"""Each metric matches a value computed by hand."""

from pathlib import Path

import numpy as np
import pytest

from training.metrics import ranking as metrics
from training.metrics.curves import save_curves

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [1, 2, 3, 4], 1.0),
        ([1, 1, 0, 0], [1, 2, 3, 4], 0.0),
        ([0, 1, 0, 1], [1, 2, 3, 4], 0.75),
        ([0, 1, 0, 1], [7, 7, 7, 7], 0.5),
        ([0, 1, 1], [1, 1, 2], 0.75),
    ],
)
def test_auc_counts_ordered_pairs_and_half_the_ties(
    labels: list[int], scores: list[float], expected: float
) -> None:
    assert metrics.auc(np.array(labels), np.array(scores)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 2, 1, 1, 2], 1.0),
        ([1, 2, 3, 1, 2], (1 / np.log2(3) + 3 / 2) / (3 + 1 / np.log2(3)) / 2 + 0.5),
        # Ties: the mean over all orders.
        (
            [1, 1, 1, 1, 1],
            4 / 3 * (1 + 1 / np.log2(3) + 0.5) / (3 + 1 / np.log2(3)) / 2
            + (1 + 1 / np.log2(3)) / 4,
        ),
    ],
)
def test_ndcg_is_the_mean_of_the_groups_with_relevant_rows(
    scores: list[float], expected: float
) -> None:
    labels, groups = np.array([2, 1, 0, 0, 1, 0]), np.array(["a", "a", "a", "b", "b", "c"])
    assert metrics.ndcg(labels, np.array([*scores, 9]), groups) == pytest.approx(expected)


def test_ndcg_counts_the_first_k_rows_only() -> None:
    labels, scores = np.array([0, 0, 1]), np.array([3, 2, 1])
    assert metrics.ndcg(labels, scores, np.zeros(3), k=2) == 0
    assert metrics.ndcg(labels, scores, np.zeros(3), k=3) == pytest.approx(0.5)
    assert np.isnan(metrics.ndcg(np.zeros(3), scores, np.zeros(3)))


def test_logloss_is_the_mean_surprise() -> None:
    labels, probs = np.array([1, 0]), np.array([0.8, 0.4])
    assert metrics.logloss(labels, probs) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)


def test_normalized_entropy_is_one_for_the_base_rate() -> None:
    labels = np.array([1, 0, 0, 0])
    assert metrics.normalized_entropy(labels, np.full(4, 0.25)) == pytest.approx(1)
    assert metrics.normalized_entropy(labels, np.array([0.9, 0.1, 0.1, 0.1])) < 0.3


def test_gauc_weights_groups_by_rows_and_skips_those_of_one_class() -> None:
    groups = np.array(["a", "b", "a", "b", "b", "c", "c"])
    labels = np.array([1, 0, 0, 1, 0, 1, 1])
    scores = np.array([0.9, 0.2, 0.1, 0.2, 0.8, 0.5, 0.6])
    auc_a, auc_b = 1.0, 0.25
    assert metrics.gauc(labels, scores, groups) == pytest.approx((2 * auc_a + 3 * auc_b) / 5)


def test_gauc_of_one_group_is_the_auc() -> None:
    labels, scores = RNG.integers(0, 2, 50), RNG.integers(0, 9, 50)
    one_group = np.zeros(50)
    assert metrics.gauc(labels, scores, one_group) == pytest.approx(metrics.auc(labels, scores))


def test_gauc_without_a_mixed_group_is_nan() -> None:
    assert np.isnan(metrics.gauc(np.array([0, 1]), np.array([0.1, 0.2]), np.array([1, 2])))


@pytest.mark.parametrize(("shift", "expected"), [(0.0, 0.0), (0.1, 0.1), (-0.1, 0.1)])
def test_ece_is_the_gap_between_predicted_and_actual_rate(shift: float, expected: float) -> None:
    labels = np.tile([0, 0, 0, 1, 0, 1, 1, 1], 10)
    probs = np.tile(np.repeat([0.25, 0.75], 4), 10) + shift
    assert metrics.ece(labels, probs) == pytest.approx(expected)


def test_equal_predictions_share_a_calibration_bin_whatever_the_order_of_rows() -> None:
    labels, probs = np.repeat([0, 1], 50), np.full(100, 0.5)
    bins = metrics.calibration_bins(labels, probs)
    assert bins.rows.tolist() == [100]
    assert metrics.ece(labels, probs) == 0


def test_calibration_bins_cover_all_rows_in_equal_parts() -> None:
    probs = RNG.random(1000)
    bins = metrics.calibration_bins(probs > 0.5, probs)
    assert bins.rows.tolist() == [100] * 10
    assert bins.predicted == pytest.approx(np.arange(0.05, 1, 0.1), abs=0.03)
    assert bins.actual[:4].tolist() + bins.actual[6:].tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(("probs", "expected"), [([0.5, 0.5], 1), ([0.2, 0.3], 0.5), ([1, 1], 2)])
def test_calibration_ratio_is_predicted_over_actual(probs: list[float], expected: float) -> None:
    assert metrics.calibration_ratio(np.array([0, 1]), np.array(probs)) == pytest.approx(expected)


def test_spearman_depends_on_order_only() -> None:
    values = np.array([1, 2, 3, 4])
    assert metrics.spearman(values, np.exp(values)) == pytest.approx(1)
    assert metrics.spearman(values, -values) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (np.arange(20), (18 + 19) / 190),
        (-np.arange(20), 1 / 190),
        (np.zeros(20), 0.1),
        (np.arange(20) >= 15, 0.4 * (15 + 16 + 17 + 18 + 19) / 190),
    ],
    ids=["best first", "worst first", "all tied", "tied at the cut"],
)
def test_top_share_is_the_value_held_by_the_top_tenth(
    scores: metrics.Array, expected: float
) -> None:
    assert metrics.top_share(np.arange(20), scores) == pytest.approx(expected)


def test_ranking_report_has_gauc_only_with_groups() -> None:
    labels, probs = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.3, 0.2])
    report = metrics.ranking_report(labels, probs)
    assert report["auc"] == pytest.approx(0.75)
    assert "gauc" not in report
    report = metrics.ranking_report(labels, probs, np.array(["a", "a", "b", "b"]))
    assert report["gauc"] == pytest.approx(0.5)


def test_curves_have_the_same_bytes_in_every_run(tmp_path: Path) -> None:
    history = {"train": [0.5, 0.4], "valid": [0.5, 0.45]}
    probs = RNG.random(100)
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        save_curves(tmp_path / run, history, probs > 0.4, probs)
    for name in ("loss.png", "roc.png", "calibration.png"):
        first = (tmp_path / "first" / name).read_bytes()
        assert first.startswith(b"\x89PNG")
        assert first == (tmp_path / "second" / name).read_bytes()
