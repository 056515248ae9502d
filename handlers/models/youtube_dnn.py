"""YouTube's candidate generation network (Covington et al., 2016, doi:10.1145/2959100.2959190).

Differs from the paper in that one item table serves history and output, with vectors of length 1;
that the history is pooled by how long ago an item came, under several learned weightings, and its
last item stands beside them; that these vectors are the user's, which the network only corrects;
and that training predicts the next item at every step of a history.

Shapes: B instances, C matrix columns, L history length, W weightings, D embedding dim, N items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from handlers.models.layers import FeatureInputs, feed_forward
from handlers.schema import FIRST_TOKEN_INDEX, MISSING_INDEX

ARCH_VERSION = 3
META_FILE = "youtube_dnn_meta.json"
WEIGHTS_FILE = "youtube_dnn_model.pt"
HISTORY_KEY = "history_item_ids"
FEATURES_KEY = "user_features"

INITIAL_TEMPERATURE = 0.1
# Below this, a softmax of cosines is as good as a maximum, and its gradients explode.
MIN_TEMPERATURE = 0.01


def pad_histories(histories: Sequence[npt.NDArray[np.int64]], max_history: int) -> Tensor:
    """The last items of each history, as :meth:`YouTubeDNN.forward` takes them, int64 [B, L]."""
    length = min(max_history, max((len(history) for history in histories), default=0))
    padded = np.full((len(histories), max(length, 1)), MISSING_INDEX, dtype=np.int64)
    for row, history in zip(padded, histories, strict=True):
        if len(history):
            row[-len(history) :] = history[-max_history:]
    return torch.from_numpy(padded)


class YouTubeDNN(nn.Module):
    """Embeds users by their features and by what they took.

    Args:
        cardinalities: For each matrix column, the number of indices of a category, 0 for a number.
        n_items: N.
        embedding_dim: D.
        feature_dim: Width of the embedding of one user feature.
        hidden: Widths of the hidden layers.
        max_history: L; of longer histories the end counts.
        n_weightings: W.
        dropout: Share of inputs and hidden units dropped in training.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
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
        self.inputs = FeatureInputs(list(cardinalities), feature_dim)
        self.item_embedding = nn.Embedding(FIRST_TOKEN_INDEX + n_items, embedding_dim)
        # From an even mean to one of the last few items.
        decays = torch.linspace(0, 1, n_weightings)[:, None]
        self.log_weights = nn.Parameter(-decays * torch.arange(max_history))  # [W, L]
        n_features = len(self.inputs.numbers) + self.inputs.n_fields * feature_dim
        n_in = n_features + (n_weightings + 1) * embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.hidden = feed_forward(n_in, hidden, dropout)
        self.head = nn.Linear(hidden[-1], embedding_dim)
        # What of the pooled histories and the last item goes straight into the user's vector.
        self.shares = nn.Parameter(torch.full((n_weightings + 1, 1), 0.5))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(INITIAL_TEMPERATURE)))

    def forward(self, matrix: Tensor, history: Tensor) -> Tensor:
        """Embed users after their whole history.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.
            history: Indices of items, the latest in the last column and 0 before the first, int64
                [B, max_history or less].

        Returns:
            Vectors of length 1, float32 [B, D].
        """
        last = self._weights(history.shape[1])[:, -1:]
        features, recent = self._inputs(matrix, history, last)
        return self._embed(features.squeeze(1), recent.squeeze(1))

    def at_steps(self, matrix: Tensor, history: Tensor, steps: Tensor) -> Tensor:
        """Embed users after some steps of their history, as if the rest had not come yet.

        Args:
            matrix: As for :meth:`forward`.
            history: As for :meth:`forward`.
            steps: Which ones, bool, of the history's shape.

        Returns:
            Vectors of length 1, in the order of ``history[steps]``, float32 [steps, D].
        """
        every = self._weights(history.shape[1])
        features, recent = self._inputs(matrix, history, every)
        return self._embed(features[steps], recent[steps])

    def item_vectors(self, index: Tensor) -> Tensor:
        """Vectors of length 1 of items, zeros for none: int64 [...] -> float32 [..., D]."""
        vectors = normalize(self.item_embedding(index), dim=-1)
        return vectors * (index != MISSING_INDEX).unsqueeze(-1)

    def all_item_vectors(self) -> Tensor:
        """Vectors of the vocabulary's items, float32 [N, D]."""
        return normalize(self.item_embedding.weight[FIRST_TOKEN_INDEX:], dim=-1)

    @property
    def temperature(self) -> Tensor:
        """What inner products are divided by, float32 []."""
        return self.log_temperature.exp().clamp_min(MIN_TEMPERATURE)

    def _weights(self, length: int) -> Tensor:
        """What each item of a history weighs at each step, [W, step, item]; 0 for what is later."""
        steps = torch.arange(length, device=self.log_weights.device)
        ago = steps[:, None] - steps
        return self.log_weights.softmax(dim=1)[:, ago.clamp_min(0)] * (ago >= 0)

    def _inputs(self, matrix: Tensor, history: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What is known at the last T steps of a history, given the weights [W, T, L].

        Returns:
            The features, [B, T, ...]; the pooled histories and the last item, [B, T, W + 1, D].
        """
        n_steps = weights.shape[1]
        items = self.item_vectors(history)  # [B, L, D]
        there = (history != MISSING_INDEX).to(items.dtype)
        total = torch.einsum("wtl,bl->btw", weights, there).clamp_min(1e-9)
        pooled = torch.einsum("wtl,bld->btwd", weights, items) / total.unsqueeze(3)
        z, fields = self.inputs(matrix)
        features = torch.cat([z, fields.flatten(1)], dim=1).unsqueeze(1).expand(-1, n_steps, -1)
        return features, torch.cat([pooled, items[:, -n_steps:].unsqueeze(2)], dim=2)

    def _embed(self, features: Tensor, recent: Tensor) -> Tensor:
        x = self.dropout(torch.cat([features, recent.flatten(-2)], dim=-1))
        correction = self.head(self.hidden(x))
        return normalize(correction + (self.shares * recent).sum(-2), dim=-1)
