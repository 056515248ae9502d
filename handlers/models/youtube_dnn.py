"""YouTube's candidate generation network (Covington et al., 2016, doi:10.1145/2959100.2959190).

It differs from the paper in four ways:

- History and output share one item table, whose vectors have unit length.
- The history is pooled with several learned weightings by the age of an item; the last item is an
  input of its own.
- The user vector is a weighted sum of these pooled vectors, plus a correction by the network.
- Training predicts the next item at every step of a history.

Shapes: B instances, C matrix columns, L history length, W weightings, D embedding dim, N items.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from handlers.feature import FIRST_TOKEN_INDEX, MISSING_INDEX, Cardinality
from handlers.models.inputs import FeatureInputs
from handlers.models.layers import (
    RetrievalNetwork,
    feed_forward,
    initial_log_temperature,
)

ARCH_VERSION = 3
META_FILE = "youtube_dnn_meta.json"
WEIGHTS_FILE = "youtube_dnn_model.pt"


class YouTubeDNN(RetrievalNetwork):
    """Embeds users by their features and their history of items.

    Args:
        cardinalities: As for :class:`handlers.models.inputs.FeatureInputs`.
        n_items: N.
        embedding_dim: D.
        feature_dim: Width of the embedding of one user feature.
        hidden: Widths of the hidden layers.
        max_history: Upper limit of L.
        n_weightings: W.
        dropout: Share of inputs and hidden units dropped in training.
    """

    def __init__(
        self,
        cardinalities: Sequence[Cardinality],
        n_items: int,
        embedding_dim: int = 64,
        feature_dim: int = 16,
        hidden: Sequence[int] = (128,),
        max_history: int = 50,
        n_weightings: int = 4,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.config = {
            "cardinalities": list(cardinalities),
            "n_items": n_items,
            "embedding_dim": embedding_dim,
            "feature_dim": feature_dim,
            "hidden": list(hidden),
            "max_history": max_history,
            "n_weightings": n_weightings,
            "dropout": dropout,
        }
        self.max_history = max_history
        self.inputs = FeatureInputs(cardinalities, feature_dim)
        self.item_embedding = nn.Embedding(FIRST_TOKEN_INDEX + n_items, embedding_dim)
        # The initial weightings range from a plain mean to a mean of the last few items.
        decays = torch.linspace(0, 1, n_weightings)[:, None]
        self.log_weights = nn.Parameter(-decays * torch.arange(max_history))  # [W, L]
        n_features = len(self.inputs.numbers) + self.inputs.n_fields * feature_dim
        n_in = n_features + (n_weightings + 1) * embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.hidden = feed_forward(n_in, hidden, dropout)
        self.head = nn.Linear(hidden[-1], embedding_dim)
        # Weights of the pooled histories and the last item in the user vector.
        self.shares = nn.Parameter(torch.full((n_weightings + 1, 1), 0.5))
        self.log_temperature = initial_log_temperature()

    def forward(self, matrix: Tensor, history: Tensor) -> Tensor:
        """Embed users after their whole history.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.
            history: Item indices as :func:`handlers.histories.pad_histories` returns them, int64
                [B, L].

        Returns:
            Vectors of unit length, float32 [B, D].
        """
        last = self._weights(history.shape[1])[:, -1:]
        features, recent = self._inputs(matrix, history, last)
        return self._embed(features.squeeze(1), recent.squeeze(1))

    def at_steps(self, matrix: Tensor, history: Tensor, steps: Tensor) -> Tensor:
        """Embed users after some steps of their history, ignoring the later steps.

        Args:
            matrix: As for :meth:`forward`.
            history: As for :meth:`forward`.
            steps: The steps to embed after, bool [B, L].

        Returns:
            Vectors of unit length, in the order of ``history[steps]``, float32 [steps, D].
        """
        every = self._weights(history.shape[1])
        features, recent = self._inputs(matrix, history, every)
        return self._embed(features[steps], recent[steps])

    def item_vectors(self, index: Tensor) -> Tensor:
        """Return unit vectors of items, zeros for padding: int64 [...] -> float32 [..., D]."""
        vectors = normalize(self.item_embedding(index), dim=-1)
        return vectors * (index != MISSING_INDEX).unsqueeze(-1)

    def all_item_vectors(self) -> Tensor:
        """Return unit vectors of all items of the vocabulary, float32 [N, D]."""
        return normalize(self.item_embedding.weight[FIRST_TOKEN_INDEX:], dim=-1)

    def _weights(self, length: int) -> Tensor:
        """Return the weight of each item at each step, 0 for later items, [W, step, item]."""
        steps = torch.arange(length, device=self.log_weights.device)
        ago = steps[:, None] - steps
        return self.log_weights.softmax(dim=1)[:, ago.clamp_min(0)] * (ago >= 0)

    def _inputs(self, matrix: Tensor, history: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the inputs at the last T steps of a history, given the weights [W, T, L].

        Returns:
            The features, [B, T, ...]; the pooled histories and the last item, [B, T, W + 1, D].
        """
        n_steps = weights.shape[1]
        items = self.item_vectors(history)  # [B, L, D]
        present = (history != MISSING_INDEX).to(items.dtype)
        total = torch.einsum("wtl,bl->btw", weights, present).clamp_min(1e-9)
        pooled = torch.einsum("wtl,bld->btwd", weights, items) / total.unsqueeze(3)
        z, fields = self.inputs(matrix)
        features = torch.cat([z, fields.flatten(1)], dim=1).unsqueeze(1).expand(-1, n_steps, -1)
        return features, torch.cat([pooled, items[:, -n_steps:].unsqueeze(2)], dim=2)

    def _embed(self, features: Tensor, recent: Tensor) -> Tensor:
        x = self.dropout(torch.cat([features, recent.flatten(-2)], dim=-1))
        correction = self.head(self.hidden(x))
        return normalize(correction + (self.shares * recent).sum(-2), dim=-1)
