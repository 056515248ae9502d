"""Layers that several models share, first of all the input layer for raw feature values.

Logarithms, standardization, bins and missing flags are computed in the network from its buffers.
Serving therefore passes raw columns and cannot prepare them differently from training.

Shapes: B instances, C matrix columns (N numbers and K categories), D embedding dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

# Standardized values are clamped to this: an absurd price must not drown the other features.
MAX_STANDARDIZED = 8.0

INITIAL_TEMPERATURE = 0.1
# Below this, gradients of single pairs dominate (Radford et al., 2021, arXiv:2103.00020).
MIN_TEMPERATURE = 0.01


class FeatureInputs(nn.Module):
    """Standardizes numbers, and embeds their quantile bins and the categories in one table.

    Args:
        cardinalities: For each matrix column, the number of indices of a category, 0 for a number.
        embedding_dim: D.
        n_bins: Quantile bins of each number, without the one for missing values.
    """

    is_log: Tensor  # bool [N]
    floor: Tensor  # [N], smallest training value of a column with a log scale
    mean: Tensor  # [N]
    std: Tensor  # [N]
    edges: Tensor  # [N, n_bins], upper bounds of the bins; the last is infinite
    offsets: Tensor  # int64 [N + K], first row of each field in the table

    def __init__(self, cardinalities: list[int], embedding_dim: int, n_bins: int = 16) -> None:
        super().__init__()
        self.numbers = [c for c, n in enumerate(cardinalities) if n == 0]
        self.categories = [c for c, n in enumerate(cardinalities) if n > 0]
        n = len(self.numbers)
        self.register_buffer("is_log", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("floor", torch.zeros(n))
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.register_buffer("edges", torch.full((n, n_bins), torch.inf))
        sizes = [n_bins + 1] * n + [cardinalities[c] for c in self.categories]
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.embedding = nn.Embedding(sum(sizes), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.01)
        self.value_embedding = nn.Parameter(torch.randn(n, embedding_dim) * 0.01)
        self.n_fields = len(sizes)

    def fit(self, matrix: Tensor) -> None:
        """Compute the buffers from the training split.

        Args:
            matrix: float32 [rows, C]; NaN for missing.
        """
        for i, column in enumerate(self.numbers):
            values = matrix[:, column]
            values = values[values.isfinite()]
            if len(values) == 0:
                continue
            # A positive column whose values span a factor of more than 10 gets a log scale.
            self.is_log[i] = bool(values.min() > 0 and values.max() > 10 * values.min())
            self.floor[i] = values.min() if self.is_log[i] else -torch.inf
            scaled = values.clamp_min(self.floor[i])
            scaled = scaled.log() if self.is_log[i] else scaled
            self.mean[i] = scaled.mean()
            self.std[i] = scaled.std(correction=0).clamp_min(1e-6)
            self.edges[i, :-1] = _quantiles(values, self.edges.shape[1] - 1)

    def forward(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Standardize and embed a batch.

        Args:
            matrix: float32 [B, C]; NaN for a missing number, indices for categories.

        Returns:
            Standardized numbers, 0 for missing, float32 [B, N]; and embeddings [B, N + K, D].
        """
        # On a small batch every operation takes 1 to 5 us, so fewer operations take less time.
        raw = matrix[:, self.numbers] if self.categories else matrix  # [B, N]
        logs = torch.maximum(raw, self.floor).log()
        z = (torch.where(self.is_log, logs, raw) - self.mean) / self.std
        z = z.clamp(-MAX_STANDARDIZED, MAX_STANDARDIZED).nan_to_num()
        # NaN sorts after infinity, so a missing number gets the bin after the last quantile.
        index = torch.searchsorted(self.edges, raw.T.contiguous(), right=True).T  # [B, N]
        if not self.categories:
            embedded = self.embedding(index + self.offsets)  # [B, N, D]
            return z, torch.addcmul(embedded, z.unsqueeze(2), self.value_embedding)
        index = torch.cat([index, matrix[:, self.categories].long()], dim=1)
        embedded = self.embedding(index + self.offsets)  # [B, N + K, D]
        numbers, categories = embedded.split([len(self.numbers), len(self.categories)], dim=1)
        numbers = torch.addcmul(numbers, z.unsqueeze(2), self.value_embedding)
        return z, torch.cat([numbers, categories], dim=1)


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
        cardinalities: For each matrix column, the number of indices of a category, 0 for a number.
        layers: Widths of the hidden layers.
        embedding_dim: D.
        feature_dim: Width of the embedding of one input.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        layers: Sequence[int],
        embedding_dim: int,
        feature_dim: int,
    ) -> None:
        super().__init__()
        self.inputs = FeatureInputs(list(cardinalities), feature_dim)
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


def _quantiles(values: Tensor, n: int) -> Tensor:
    """Return n inner quantiles, as values: torch.quantile refuses more than 16M values."""
    ordered = values.sort().values
    at = torch.linspace(0, len(ordered) - 1, n + 2)[1:-1].round().long()
    return ordered[at]
