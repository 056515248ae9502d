"""Losses of models that score an item by the inner product of a user's and the item's vector.

Shapes: B users, N items of the vocabulary, S sampled items, D embedding dim. A target is the
position of an item in the vocabulary, from 0; its index is that plus 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from handlers.feature import FIRST_TOKEN_INDEX

# Mean loss of user vectors, float32 [B, D], and their targets, int64 [B].
Loss = Callable[[Tensor, Tensor], Tensor]


class ItemEmbedder(Protocol):
    """A network that embeds the items which it recommends."""

    @property
    def temperature(self) -> Tensor:
        """Divisor of the inner products, float32 []."""

    def item_vectors(self, index: Tensor) -> Tensor:
        """Embed items by index, int64 [B] -> float32 [B, D]."""

    def all_item_vectors(self) -> Tensor:
        """Embed the vocabulary, float32 [N, D]."""


def softmax_loss(
    network: ItemEmbedder, targets: Tensor, max_full_items: int, n_sampled: int
) -> Loss:
    """Return a softmax over all items or, where there are too many, over a sample of them.

    Args:
        network: The network to train.
        targets: Indices of all items that training predicts, 0 for padding; int64, any shape.
        max_full_items: Number of items up to which the softmax is over all of them.
        n_sampled: Size of the sample.
    """
    n_items = len(network.all_item_vectors())
    if n_items <= max_full_items:
        return lambda users, targets: full_softmax(
            users, targets, network.all_item_vectors(), network.temperature
        )
    counts = torch.bincount(targets.flatten(), minlength=n_items + FIRST_TOKEN_INDEX)
    sampled_softmax = SampledSoftmax(counts[FIRST_TOKEN_INDEX:], n_sampled)

    def item_vectors(positions: Tensor) -> Tensor:
        return network.item_vectors(positions + FIRST_TOKEN_INDEX)

    return lambda users, targets: sampled_softmax(users, targets, item_vectors, network.temperature)


def full_softmax(users: Tensor, targets: Tensor, items: Tensor, temperature: Tensor) -> Tensor:
    """Cross-entropy over all items.

    Args:
        users: User vectors, float32 [B, D].
        targets: Positions of the items that came next, int64 [B].
        items: Vectors of all items, float32 [N, D].
        temperature: Divisor of the inner products, float32 [].

    Returns:
        Mean loss, float32 [].
    """
    return cross_entropy(users @ items.T / temperature, targets)


class SampledSoftmax:
    """Cross-entropy over the target and a sample of the items (Bengio & Senecal, 2008).

    Items are drawn in proportion to their frequency to the power .75. The log of that probability
    is subtracted from the logits, since frequent items are drawn as negatives more often.

    Args:
        counts: Number of times that each item is a target, int64 [N].
        n_sampled: Number of items drawn for each batch, S.
    """

    def __init__(self, counts: Tensor, n_sampled: int) -> None:
        weights = counts.clamp_min(1) ** 0.75
        self.n_sampled = n_sampled
        self.probabilities = weights / weights.sum()
        self.log_probabilities = self.probabilities.log()

    def __call__(
        self,
        users: Tensor,
        targets: Tensor,
        item_vectors: Callable[[Tensor], Tensor],
        temperature: Tensor,
    ) -> Tensor:
        """Draw items and compute the loss.

        Args:
            users: User vectors, float32 [B, D].
            targets: Positions of the items that came next, int64 [B].
            item_vectors: Maps positions of items, int64 [B + S], to vectors, float32 [B + S, D].
            temperature: Divisor of the inner products, float32 [].

        Returns:
            Mean loss, float32 [].
        """
        sampled = torch.multinomial(self.probabilities, self.n_sampled, replacement=True)
        vectors = item_vectors(torch.cat([targets, sampled]))
        own, others = torch.split(vectors, [len(targets), self.n_sampled])
        own_logits = (users * own).sum(1) / temperature - self.log_probabilities[targets]
        logits = users @ others.T / temperature - self.log_probabilities[sampled]
        logits = logits.masked_fill(sampled == targets[:, None], -torch.inf)
        logits = torch.cat([own_logits[:, None], logits], dim=1)  # [B, 1 + S]
        return cross_entropy(logits, torch.zeros_like(targets))
