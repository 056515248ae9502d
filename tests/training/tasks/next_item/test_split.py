"""The leave-one-out split keeps held-out items out of training."""

from __future__ import annotations

import pandas as pd
import pytest

from training.data.sources import DataError
from training.tasks.next_item.split import leave_one_out

LOG = pd.DataFrame({"user": list("aaaaabbbccd"), "item": list("xyzxyxyzxqz")})


def test_held_out_items_are_neither_trained_on_nor_counted() -> None:
    split = leave_one_out(LOG["user"], LOG["item"], min_count=1)
    x, y, z = (split.vocabulary.index(token) + 2 for token in "xyz")
    assert set(split.vocabulary) == set("xyz")  # q is held out wherever it occurs
    assert [items.tolist() for items in split.train] == [[x, y, z, x], [x, y], [x], []]
    test = split.test
    assert test.targets.tolist() == [y, z, 1, z]
    assert [history.tolist() for history in test.histories] == [[x, y, z, x], [x, y], [x], []]
    assert len(split.valid.users) == 0


def test_validation_users_have_two_items_held_out() -> None:
    split = leave_one_out(LOG["user"], LOG["item"], min_count=1, valid_share=1.0)
    assert [len(items) for items in split.train] == [3, 1, 0, 0]
    assert split.valid.users.tolist() == [0, 1, 2]
    assert [len(history) for history in split.valid.histories] == [3, 1, 0]
    assert [len(history) for history in split.test.histories] == [4, 2, 1, 0]


def test_rows_may_mix_users_and_lack_items() -> None:
    mixed = pd.DataFrame({"user": list("abaab"), "item": ["x", "y", None, "z", "x"]})
    split = leave_one_out(mixed["user"], mixed["item"], min_count=1)
    tokens = ["", "?", *split.vocabulary]
    found = [[tokens[i] for i in items] for items in split.sequences]
    assert found == [["x", "?"], ["y", "x"]]


def test_chunks_hold_every_user_once_in_order() -> None:
    test = leave_one_out(LOG["user"], LOG["item"], min_count=1).test
    parts = list(test.chunks(3))
    assert [len(part) for part in parts] == [3, 1]
    assert [user for part in parts for user in part.users] == test.users.tolist()
    assert [target for part in parts for target in part.targets] == test.targets.tolist()
    assert [len(history) for part in parts for history in part.histories] == [4, 2, 1, 0]


def test_too_few_frequent_items_are_an_error() -> None:
    with pytest.raises(DataError, match="expected 2 items or more that come 5 times or more"):
        leave_one_out(LOG["user"], LOG["item"], min_count=5)
