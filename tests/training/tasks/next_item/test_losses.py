"""Losses of the next item."""

from __future__ import annotations

import torch

from training.tasks.next_item.losses import SampledSoftmax


def test_target_is_never_its_own_negative() -> None:
    loss = SampledSoftmax(torch.tensor([5]), n_sampled=20)
    users, items = torch.ones(3, 4), torch.ones(1, 4)
    value = loss(users, torch.zeros(3, dtype=torch.int64), items.__getitem__, torch.tensor(1.0))
    assert value == 0
