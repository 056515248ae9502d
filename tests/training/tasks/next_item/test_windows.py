"""Windows predict every item of a sequence once, from the items before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.tasks.next_item.windows import cut_windows, hide_items


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8])
def test_windows_predict_each_item_once_from_those_before_it(length: int) -> None:
    train = [np.arange(2, 2 + n) for n in (0, 1, 4, 5, 13)]
    users, histories, targets = (part.numpy() for part in cut_windows(train, length))
    predicted: dict[int, list[int]] = {user: [] for user in range(len(train))}
    for user, history, target in zip(users, histories, targets, strict=True):
        for step in np.flatnonzero(target):
            seen = history[: step + 1]
            # The items of a user are numbered in order: the item before is one less, or padding.
            assert seen[-1] == (target[step] - 1 if target[step] > 2 else 0)
            assert np.all(np.diff(seen[seen > 0]) == 1)
            predicted[user].append(int(target[step]))
    assert {user: sorted(items) for user, items in predicted.items()} == {
        user: items.tolist() for user, items in enumerate(train)
    }


def test_hidden_items_are_out_of_vocabulary_and_padding_stays() -> None:
    histories = torch.tensor([[0, 0, 2, 7], [1, 3, 4, 5]])
    assert hide_items(histories, share=0).tolist() == histories.tolist()
    assert hide_items(histories, share=1).tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
