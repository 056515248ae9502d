"""Layers that several models share.

Shapes: B instances, C matrix columns, D embedding dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from handlers.feature import Cardinality
from handlers.models.inputs import FeatureInputs

INITIAL_TEMPERATURE = 0.1
# Below this, gradients of single pairs dominate (Radford et al., 2021, arXiv:2103.00020).
MIN_TEMPERATURE = 0.01


class RankingNetwork(nn.Module):
    """A network that scores the instances of a feature matrix.

    Attributes:
        inputs: Its input layer.
        config: Arguments of the constructor.
    """

    inputs: FeatureInputs
    config: dict[str, Any]


class RetrievalNetwork(nn.Module):
    """A network whose logits are inner products of unit vectors, divided by a learned temperature.

    Attributes:
        log_temperature: Logarithm of the temperature; see :func:`initial_log_temperature`.
        config: Arguments of the constructor.
    """

    log_temperature: nn.Parameter
    config: dict[str, Any]

    @property
    def temperature(self) -> Tensor:
        """Divisor of the inner products, float32 []."""
        return self.log_temperature.exp().clamp_min(MIN_TEMPERATURE)


def initial_log_temperature() -> nn.Parameter:
    """Create the parameter ``log_temperature`` of a :class:`RetrievalNetwork`."""
    return nn.Parameter(torch.tensor(math.log(INITIAL_TEMPERATURE)))


class Tower(nn.Module):
    """Maps features to a vector of unit length; the last layer is linear, to reach all directions.

    Args:
        cardinalities: As for :class:`FeatureInputs`.
        layers: Widths of the hidden layers.
        embedding_dim: D.
        feature_dim: Width of the embedding of one input.
    """

    def __init__(
        self,
        cardinalities: Sequence[Cardinality],
        layers: Sequence[int],
        embedding_dim: int,
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.inputs = FeatureInputs(cardinalities, feature_dim)
        # Starting near 0, as in ranking models, the vectors of ids would take epochs to diverge.
        nn.init.normal_(self.inputs.embedding.weight, std=feature_dim**-0.5)
        n_in = len(self.inputs.numbers) + self.inputs.n_fields * feature_dim
        self.hidden = feed_forward(n_in, layers, dropout=0.0)
        self.head = nn.Linear(layers[-1], embedding_dim)

    def forward(self, matrix: Tensor) -> Tensor:
        """Embed users or items.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.

        Returns:
            Vectors of unit length, float32 [B, D].
        """
        z, fields = self.inputs(matrix)
        return normalize(self.head(self.hidden(torch.cat([z, fields.flatten(1)], dim=1))), dim=1)


def feed_forward(n_in: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Build linear layers with SiLU, float32 [B, n_in] -> [B, hidden[-1]]."""
    layers: list[nn.Module] = []
    for n_out in hidden:
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        n_in = n_out
    return nn.Sequential(*layers)
