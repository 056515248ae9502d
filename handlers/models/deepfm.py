"""DeepFM (Guo et al., 2017, arXiv:1703.04247).

It differs from the paper in its inputs. A number is a field too, whose vector is the embedding of
its quantile bin plus its standardized value times a vector; the deep part also reads the values.

Shapes: B instances, C matrix columns, F fields, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vecdot

from handlers.feature import Cardinality
from handlers.models.inputs import FeatureInputs
from handlers.models.layers import RankingNetwork, feed_forward

ARCH_VERSION = 2
META_FILE = "deepfm_feature_meta.json"
WEIGHTS_FILE = "deepfm_model.pt"


class DeepFM(RankingNetwork):
    """The sum of a linear model, a factorization machine and a feed-forward network.

    Args:
        cardinalities: As for :class:`handlers.models.inputs.FeatureInputs`.
        embedding_dim: D, shared by the factorization machine and the deep part.
        hidden: Widths of the deep part.
        dropout: Share of hidden units dropped in training.
        inputs: Further arguments of :class:`handlers.models.inputs.FeatureInputs`.
    """

    def __init__(
        self,
        cardinalities: Sequence[Cardinality],
        embedding_dim: int = 16,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        **inputs: Any,
    ) -> None:
        super().__init__()
        self.config = {
            "cardinalities": list(cardinalities),
            "embedding_dim": embedding_dim,
            "hidden": list(hidden),
            "dropout": dropout,
            **inputs,
        }
        self.inputs = FeatureInputs(cardinalities, embedding_dim, **inputs)
        n_numbers, n_fields = len(self.inputs.numbers), self.inputs.n_fields
        self.linear = nn.Linear(n_numbers + n_fields * embedding_dim, 1)
        self.deep = feed_forward(n_numbers + n_fields * embedding_dim, hidden, dropout)
        self.head = nn.Linear(hidden[-1], 1)

    def forward(self, matrix: Tensor) -> Tensor:
        """Score a batch.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.

        Returns:
            Click logits, float32 [B]; apply sigmoid for probability.
        """
        z, fields = self.inputs(matrix)  # [B, N], [B, F, D]
        total, vectors = fields.sum(1), fields.flatten(1)  # [B, D], [B, F * D]
        pairs = 0.5 * (vecdot(total, total) - vecdot(vectors, vectors))  # [B]
        flat = torch.cat([z, vectors], dim=1)  # [B, N + F * D]
        deep = self.head(self.deep(flat)).squeeze(1)
        logits: Tensor = self.linear(flat).squeeze(1) + pairs + deep
        return logits
