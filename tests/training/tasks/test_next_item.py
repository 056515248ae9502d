"""Sequences: the worlds have their ceilings, and what is held out stays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from training.data.sources import DataError
from training.metrics.retrieval import expected_ranks, retrieval_report
from training.tasks.next_item.data import Holdout, encode
from training.tasks.next_item.evaluation import SequencesEvaluation, item_knn, last_item, popularity
from training.tasks.next_item.world import corpus, generate_sequences
from training.tasks.next_item.world import sequences as draw_sequences
from training.train_youtube_dnn import windows


def test_world_has_the_ceiling_and_the_baselines_of_the_docs() -> None:
    log, users, items = draw_sequences()
    clusters, shares = items["cluster"].to_numpy(), items["share"].to_numpy()
    index = pd.Index(items["token"]).get_indexer(log["item_id"])
    ends = log.groupby("user_id", sort=False).size().cumsum().to_numpy() - 1
    targets, is_last = index[ends], np.isin(np.arange(len(log)), ends)
    popularity = np.bincount(index[~is_last], minlength=len(items)).astype(float)
    inside = (log["user_id"].to_numpy()[1:] == log["user_id"].to_numpy()[:-1]) & ~is_last[1:]
    follows = np.zeros((20, 20))
    np.add.at(follows, (clusters[index[:-1][inside]], clusters[index[1:][inside]]), 1)
    follows /= follows.sum(axis=1, keepdims=True)
    last = follows[clusters[index[ends - 1]]]
    truth = users.drop(columns="user_id").to_numpy()
    found = {
        name: retrieval_report(expected_ranks(scores, targets))["hr_at_10"]
        for name, scores in {
            "popularity": np.tile(popularity, (len(ends), 1)),
            "last item": last[:, clusters] * shares,
            "oracle": truth[:, clusters] * shares,
        }.items()
    }
    # A standard error of HR@10 over 6,000 users is .006.
    assert found == pytest.approx(
        {"popularity": 0.113, "last item": 0.290, "oracle": 0.413}, abs=0.0065
    )


def test_world_is_the_same_again_and_holds_no_truth(tmp_path: Path) -> None:
    for name in ("first", "second"):
        generate_sequences(tmp_path / name, n_users=50)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second
    header = first["interactions.csv"].split(b"\n")[0]
    assert header == b"user_id,item_id,timestamp,user_age,user_gender"


def test_texts_are_about_one_topic_each() -> None:
    texts, truth = corpus(50)
    cluster = truth.set_index("token")["cluster"].to_dict()
    for text in texts["text"]:
        assert len({cluster[word] for word in text.split() if word in cluster}) <= 1


LOG = pd.DataFrame({"user": list("aaaaabbbccd"), "item": list("xyzxyxyzxqz")})


def test_steps_held_out_are_not_trained_on_nor_counted() -> None:
    data = encode(LOG["user"], LOG["item"], min_count=1)
    x, y, z = (data.vocabulary.index(token) + 2 for token in "xyz")
    assert set(data.vocabulary) == set("xyz")  # q is only ever a last step
    assert [items.tolist() for items in data.train] == [[x, y, z, x], [x, y], [x], []]
    test = data.test
    assert test.targets.tolist() == [y, z, 1, z]
    assert [history.tolist() for history in test.histories] == [[x, y, z, x], [x, y], [x], []]
    assert len(data.valid.users) == 0


def test_users_that_select_lose_one_more_step_to_it() -> None:
    data = encode(LOG["user"], LOG["item"], min_count=1, valid_share=1.0)
    assert [len(items) for items in data.train] == [3, 1, 0, 0]
    assert data.valid.users.tolist() == [0, 1, 2]
    assert [len(history) for history in data.valid.histories] == [3, 1, 0]
    assert [len(history) for history in data.test.histories] == [4, 2, 1, 0]


def test_rows_of_users_may_come_in_any_order_and_lack_an_item() -> None:
    mixed = pd.DataFrame({"user": list("abaab"), "item": ["x", "y", None, "z", "x"]})
    data = encode(mixed["user"], mixed["item"], min_count=1)
    tokens = ["", "?", *data.vocabulary]
    assert [[tokens[i] for i in items] for items in data.items] == [["x", "?"], ["y", "x"]]


def test_too_little_to_train_on_is_told() -> None:
    with pytest.raises(DataError, match="expected 2 items or more that come 5 times or more"):
        encode(LOG["user"], LOG["item"], min_count=5)


def test_baselines_score_as_by_hand() -> None:
    data = encode(LOG["user"], LOG["item"], min_count=1)
    x, y, z = (data.vocabulary.index(token) for token in "xyz")
    holdout = Holdout(np.array([0]), [np.array([y + 2, x + 2])], np.array([z + 2]))
    counts = popularity(data.train, 3)(holdout)[0]
    assert [counts[x], counts[y], counts[z]] == [4, 2, 1]
    after_x = last_item(data.train, 3)(holdout)[0]
    assert [after_x[x], after_x[y], after_x[z]] == [0, 2, 0]
    # Users of x: a, b, c; of y: a, b; of z: a.
    near = item_knn(data.train, 3)(holdout)[0]
    assert near[z] == pytest.approx(1 / np.sqrt(2) + 1 / np.sqrt(3))
    assert near[x] == pytest.approx(2 / np.sqrt(6))


class LastItems(SequencesEvaluation):
    """What must not be asked is left out."""

    def rows(self) -> list[Any]:
        """None."""
        return []


def test_item_that_training_did_not_keep_is_a_miss() -> None:
    data = encode(LOG["user"], LOG["item"], min_count=1)
    ranks = LastItems(data, exclude_history=False).rank(
        lambda holdout: np.zeros((len(holdout.users), 3))
    )
    all_equal = retrieval_report(ranks)
    assert all_equal["hr_at_10"] == 0.75  # q of c cannot be found
    assert all_equal["mrr"] == pytest.approx(0.75 / 2)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_windows_predict_each_step_once_from_what_came_before(length: int) -> None:
    train = [np.arange(2, 2 + n) for n in (0, 1, 4, 5, 13)]
    owners, histories, targets = windows(train, length)
    predicted: dict[int, list[int]] = {user: [] for user in range(len(train))}
    for user, history, target in zip(owners, histories, targets, strict=True):
        for place in np.flatnonzero(target):
            seen = history[: place + 1]
            # Items of a user are numbered in order, so the one before is one less, or none.
            assert seen[-1] == (target[place] - 1 if target[place] > 2 else 0)
            assert np.all(np.diff(seen[seen > 0]) == 1)
            predicted[user].append(int(target[place]))
    assert {user: sorted(steps) for user, steps in predicted.items()} == {
        user: items.tolist() for user, items in enumerate(train)
    }
