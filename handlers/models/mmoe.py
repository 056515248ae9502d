"""Multi-gate mixture of experts (Ma et al., 2018, doi:10.1145/3219819.3220007).

It differs from the paper in its targets: in addition to binary tasks it has amounts that are mostly
zero, trained with the Tweedie deviance and a log link.

Shapes: B instances, C matrix columns, E experts, H expert width, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from handlers.feature import Cardinality
from handlers.models.inputs import FeatureInputs
from handlers.models.layers import RankingNetwork, feed_forward

ARCH_VERSION = 2
META_FILE = "mmoe_feature_meta.json"
WEIGHTS_FILE = "mmoe_model.pt"

# Limits a predicted amount to e^8 = 2981 times the mean of the training split.
MAX_LOG_RATIO = 8.0


class MMoE(RankingNetwork):
    """Experts that all tasks share, and for each task a gate that weights them and a tower.

    Args:
        cardinalities: As for :class:`handlers.models.inputs.FeatureInputs`.
        target_means: For each task, the mean of its amounts in training, or 0 if it is binary.
        embedding_dim: Width of an embedding.
        n_experts: E.
        expert_hidden: Widths of an expert's layers; the last is H.
        tower_hidden: Widths of a tower's hidden layers.
        dropout: Share of hidden units dropped in training.
        inputs: Further arguments of :class:`handlers.models.inputs.FeatureInputs`.
    """

    is_amount: Tensor
    scale: Tensor

    def __init__(
        self,
        cardinalities: Sequence[Cardinality],
        target_means: Sequence[float],
        embedding_dim: int = 8,
        n_experts: int = 3,
        expert_hidden: Sequence[int] = (32,),
        tower_hidden: Sequence[int] = (16,),
        dropout: float = 0.0,
        **inputs: Any,
    ) -> None:
        super().__init__()
        self.config = {
            "cardinalities": list(cardinalities),
            "target_means": list(target_means),
            "embedding_dim": embedding_dim,
            "n_experts": n_experts,
            "expert_hidden": list(expert_hidden),
            "tower_hidden": list(tower_hidden),
            "dropout": dropout,
            **inputs,
        }
        self.inputs = FeatureInputs(cardinalities, embedding_dim, **inputs)
        n_in = len(self.inputs.numbers) + self.inputs.n_fields * embedding_dim
        self.experts = nn.ModuleList(
            feed_forward(n_in, expert_hidden, dropout) for _ in range(n_experts)
        )
        self.gates = nn.ModuleList(nn.Linear(n_in, n_experts) for _ in target_means)
        self.towers = nn.ModuleList(
            nn.Sequential(
                feed_forward(expert_hidden[-1], tower_hidden, dropout),
                nn.Linear(tower_hidden[-1], 1),
            )
            for _ in target_means
        )
        means = torch.tensor(list(target_means), dtype=torch.float32)
        self.register_buffer("is_amount", means > 0, persistent=False)
        self.register_buffer("scale", means, persistent=False)

    def forward(self, matrix: Tensor) -> Tensor:
        """Score a batch.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.

        Returns:
            For a binary task its logit, for another the log of amount / mean, float32 [B, T].
        """
        z, fields = self.inputs(matrix)
        flat = torch.cat([z, fields.flatten(1)], dim=1)
        experts = torch.stack([expert(flat) for expert in self.experts], dim=1)  # [B, E, H]
        outputs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = gate(flat).softmax(dim=1).unsqueeze(2)  # [B, E, 1]
            outputs.append(tower((weights * experts).sum(dim=1)))  # [B, 1]
        return torch.cat(outputs, dim=1)

    def expected(self, matrix: Tensor) -> Tensor:
        """Compute the probability of each binary task and the amount of others, float32 [B, T]."""
        logits = self(matrix)
        amounts = logits.clamp(max=MAX_LOG_RATIO).exp() * self.scale
        return torch.where(self.is_amount, amounts, logits.sigmoid())
