"""Two-tower retrieval (Yi et al., 2019, doi:10.1145/3298689.3346996).

As in the paper, both towers end in unit vectors, and training takes the log of an item's sampling
probability off its logit. Differs in its inputs, which are those of the ranking models, and in the
temperature, which is learned.

Shapes: B users, N items, C matrix columns, D embedding dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from handlers.models.layers import FeatureInputs, feed_forward

ARCH_VERSION = 2
META_FILE = "two_tower_meta.json"
WEIGHTS_FILE = "two_tower_model.pt"

INITIAL_TEMPERATURE = 0.1
# Colder than this, gradients of single pairs take over (Radford et al., 2021, arXiv:2103.00020).
MIN_TEMPERATURE = 0.01


class Tower(nn.Module):
    """Features to a unit vector; the last layer is linear, so that no direction is out of reach.

    Args:
        cardinalities: For each matrix column, the number of indices of a category, 0 for a number.
        layers: Widths of the hidden layers.
        embed_dim: D.
        feature_dim: Width of the embedding of one input.
    """

    def __init__(
        self, cardinalities: Sequence[int], layers: Sequence[int], embed_dim: int, feature_dim: int
    ) -> None:
        super().__init__()
        self.inputs = FeatureInputs(list(cardinalities), feature_dim)
        # From vectors near 0, as rankers start, ids take epochs to tell themselves apart.
        nn.init.normal_(self.inputs.embedding.weight, std=feature_dim**-0.5)
        n_in = len(self.inputs.numbers) + self.inputs.n_fields * feature_dim
        self.hidden = feed_forward(n_in, layers, dropout=0.0)
        self.head = nn.Linear(layers[-1], embed_dim)

    def forward(self, matrix: Tensor) -> Tensor:
        """Embed users or items.

        Args:
            matrix: Raw feature values, float32 [B, C]; standardization happens inside.

        Returns:
            Vectors of length 1, float32 [B, D].
        """
        z, fields = self.inputs(matrix)
        return normalize(self.head(self.hidden(torch.cat([z, fields.flatten(1)], dim=1))), dim=1)


class TwoTower(nn.Module):
    """A tower for users and one for items, whose inner product says how well they match.

    Args:
        user_dim: Matrix columns of the user tower.
        item_dim: Matrix columns of the item tower.
        user_layers: Widths of the user tower's hidden layers.
        item_layers: Widths of the item tower's hidden layers.
        embed_dim: D.
        feature_dim: Width of the embedding of one input.
        user_cardinalities: For each user column, the number of indices of a category, 0 for a
            number; all are numbers when left out.
        item_cardinalities: The same for items.
    """

    def __init__(
        self,
        user_dim: int,
        item_dim: int,
        user_layers: Sequence[int] = (128, 64),
        item_layers: Sequence[int] = (128, 64),
        embed_dim: int = 64,
        feature_dim: int = 16,
        user_cardinalities: Sequence[int] = (),
        item_cardinalities: Sequence[int] = (),
    ) -> None:
        super().__init__()
        user_columns = list(user_cardinalities) or [0] * user_dim
        item_columns = list(item_cardinalities) or [0] * item_dim
        self.config = {
            "user_dim": user_dim,
            "item_dim": item_dim,
            "user_layers": list(user_layers),
            "item_layers": list(item_layers),
            "embed_dim": embed_dim,
            "feature_dim": feature_dim,
            "user_cardinalities": user_columns,
            "item_cardinalities": item_columns,
        }
        self.user = Tower(user_columns, user_layers, embed_dim, feature_dim)
        self.item = Tower(item_columns, item_layers, embed_dim, feature_dim)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(INITIAL_TEMPERATURE)))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Score every user with every item.

        Args:
            users: float32 [B, C] of the user tower.
            items: float32 [N, C] of the item tower.

        Returns:
            Logits of a softmax over the items, float32 [B, N].
        """
        return self.logits(self.user(users), self.item(items))

    @property
    def temperature(self) -> Tensor:
        """What inner products are divided by, float32 []."""
        return self.log_temperature.exp().clamp_min(MIN_TEMPERATURE)

    def logits(self, users: Tensor, items: Tensor) -> Tensor:
        """The same for vectors, float32 [B, D] and [N, D] -> [B, N]."""
        return users @ items.T / self.temperature
