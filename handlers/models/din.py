"""Deep Interest Network (Zhou et al., 2018, arXiv:1706.06978), on top of DeepFM.

It differs from the paper in four ways. The network around the interest is DeepFM, so the interest
also takes part in the pairwise products. The activation unit has SiLU instead of Dice, and the
products of the components of item and target instead of their outer product. The weighted sum is
divided by the root of the number of items, which keeps its scale for short and long histories.

Shapes: B instances, C matrix columns, F fields, D embedding dim, L items of a history, E dim of an
item: D, or 2 D if items are hashed; H hidden width of the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vecdot
from torch.nn.functional import silu

from handlers.feature import Cardinality
from handlers.models.inputs import FeatureInputs
from handlers.models.layers import RankingNetwork, feed_forward

ARCH_VERSION = 1
META_FILE = "din_feature_meta.json"
WEIGHTS_FILE = "din_model.pt"


class TargetAttention(nn.Module):
    """Sums the items of a history, each weighted by how it relates to the target item.

    Args:
        dim: E.
        hidden: H.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.of_item = nn.Parameter(torch.randn(dim, hidden) * dim**-0.5)
        self.of_product = nn.Parameter(torch.randn(dim, hidden) * dim**-0.5)
        self.of_target = nn.Linear(dim, hidden)
        self.head = nn.Linear(hidden, 1)
        # With equal weights at the start, the vectors of the items get a gradient from the first
        # step on. From weights near 0, training can take any number of epochs to leave the start.
        nn.init.ones_(self.head.bias)

    def forward(self, items: Tensor, target: Tensor, is_item: Tensor) -> Tensor:
        """Compute the interest in the target.

        Args:
            items: Items of each history, float32 [B, L, E]; or of one that all share, [1, L, E].
            target: Target items, float32 [B, E].
            is_item: Whether there is an item, bool [B, L] or [1, L].

        Returns:
            float32 [B, E]; 0 without items.
        """
        # The layer over item, product and target as one matrix for each target: concatenating
        # the three takes several times as long.
        layer = torch.addcmul(self.of_item, target.unsqueeze(2), self.of_product)  # [B, E, H]
        items = items.expand(target.shape[0], -1, -1)
        hidden = silu(torch.baddbmm(self.of_target(target).unsqueeze(1), items, layer))
        weights = self.head(hidden).squeeze(2) * is_item  # [B, L]
        interest = torch.bmm(weights.unsqueeze(1), items).squeeze(1)
        return interest * is_item.sum(1, keepdim=True).clamp_min(1).rsqrt()


class DIN(RankingNetwork):
    """DeepFM with a field for the user's interest in the target item.

    Args:
        cardinalities: As for :class:`handlers.models.inputs.FeatureInputs`.
        embedding_dim: D.
        hidden: Widths of the deep part.
        attention_dim: H; 0 for a network that does not read the history.
        dropout: Share of hidden units dropped in training.
        inputs: Further arguments of :class:`handlers.models.inputs.FeatureInputs`.
    """

    def __init__(
        self,
        cardinalities: Sequence[Cardinality],
        embedding_dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        attention_dim: int = 16,
        dropout: float = 0.0,
        **inputs: Any,
    ) -> None:
        super().__init__()
        self.config = {
            "cardinalities": list(cardinalities),
            "embedding_dim": embedding_dim,
            "hidden": list(hidden),
            "attention_dim": attention_dim,
            "dropout": dropout,
            **inputs,
        }
        self.inputs = FeatureInputs(cardinalities, embedding_dim, **inputs)
        # A history of hashed items gives a field for each of the two hashes.
        n_interests = len(self.inputs.histories) if attention_dim else 0
        self.attention = (
            TargetAttention(n_interests * embedding_dim, attention_dim) if n_interests else None
        )
        n_numbers, n_fields = len(self.inputs.numbers), self.inputs.n_fields + n_interests
        self.linear = nn.Linear(n_numbers + n_fields * embedding_dim, 1)
        self.deep = feed_forward(n_numbers + n_fields * embedding_dim, hidden, dropout)
        self.head = nn.Linear(hidden[-1], 1)

    def forward(self, matrix: Tensor, one_history: bool = False) -> Tensor:
        """Score a batch.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.
            one_history: Whether all instances have the history of the first one, which saves time.

        Returns:
            Click logits, float32 [B]; apply sigmoid for probability.
        """
        if self.attention is None:
            z, fields = self.inputs(matrix)  # [B, N], [B, F, D]
        else:
            z, fields, *history = self.inputs.with_histories(matrix, one_history)
            interest = self.attention(*history)  # [B, E]
            fields = torch.cat([fields, interest.unflatten(1, (-1, fields.shape[2]))], dim=1)
        total, vectors = fields.sum(1), fields.flatten(1)  # [B, D], [B, F * D]
        pairs = 0.5 * (vecdot(total, total) - vecdot(vectors, vectors))  # [B]
        flat = torch.cat([z, vectors], dim=1)  # [B, N + F * D]
        deep = self.head(self.deep(flat)).squeeze(1)
        logits: Tensor = self.linear(flat).squeeze(1) + pairs + deep
        return logits
