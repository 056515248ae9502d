"""The synthetic worlds have the ceilings that the documentation states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.metrics.retrieval import expected_ranks, retrieval_report
from training.tasks.next_item.world import draw_corpus, draw_sequences, generate_sequences


def test_world_has_the_documented_ceiling_and_baselines() -> None:
    log, users, items = draw_sequences()
    clusters, shares = items["cluster"].to_numpy(), items["share"].to_numpy()
    index = pd.Index(items["token"]).get_indexer(log["item_id"])
    ends = log.groupby("user_id", sort=False).size().cumsum().to_numpy() - 1
    targets, is_last = index[ends], np.isin(np.arange(len(log)), ends)
    popularity = np.bincount(index[~is_last], minlength=len(items)).astype(float)
    same_user = log["user_id"].to_numpy()[1:] == log["user_id"].to_numpy()[:-1]
    pairs = same_user & ~is_last[1:]
    follows = np.zeros((20, 20))
    np.add.at(follows, (clusters[index[:-1][pairs]], clusters[index[1:][pairs]]), 1)
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
    # The standard error of HR@10 over 6,000 users is .006.
    assert found == pytest.approx(
        {"popularity": 0.113, "last item": 0.290, "oracle": 0.413}, abs=0.0065
    )


def test_world_is_reproducible_and_its_truth_is_kept_apart(tmp_path: Path) -> None:
    for name in ("first", "second"):
        generate_sequences(tmp_path / name, n_users=50)
    first, second = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("first", "second")
    )
    assert first == second
    header = first["interactions.csv"].split(b"\n")[0]
    assert header == b"user_id,item_id,timestamp,user_age,user_gender"


def test_each_text_is_about_one_topic() -> None:
    texts, truth = draw_corpus(50)
    cluster = truth.set_index("token")["cluster"].to_dict()
    for text in texts["text"]:
        assert len({cluster[word] for word in text.split() if word in cluster}) <= 1
