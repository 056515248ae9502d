"""Two-tower retrieval (Yi et al., 2019, doi:10.1145/3298689.3346996).

As in the paper, both towers end in unit vectors, and training subtracts the log of an item's
sampling probability from its logit. It differs in its inputs, which are those of the ranking
models, and in its temperature, which is learned.

Shapes: B users, N items, C matrix columns, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from handlers.feature import Cardinality
from handlers.models.layers import RetrievalNetwork, Tower, initial_log_temperature

ARCH_VERSION = 2
META_FILE = "two_tower_meta.json"
WEIGHTS_FILE = "two_tower_model.pt"


class TwoTower(RetrievalNetwork):
    """A tower for users and one for items; the inner product of their vectors scores a pair.

    Args:
        user_dim: Matrix columns of the user tower.
        item_dim: Matrix columns of the item tower.
        user_layers: Widths of the user tower's hidden layers.
        item_layers: Widths of the item tower's hidden layers.
        embed_dim: D. Not ``embedding_dim``, because the name is part of the weights file.
        feature_dim: Width of the embedding of one input.
        user_cardinalities: For each user column, the number of indices of a category, 0 for a
            number. If empty, all columns are numbers.
        item_cardinalities: Likewise for the item columns.
    """

    def __init__(
        self,
        user_dim: int,
        item_dim: int,
        user_layers: Sequence[int] = (128, 64),
        item_layers: Sequence[int] = (128, 64),
        embed_dim: int = 64,
        feature_dim: int = 16,
        user_cardinalities: Sequence[Cardinality] = (),
        item_cardinalities: Sequence[Cardinality] = (),
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
        self.log_temperature = initial_log_temperature()

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Score every pair of a user and an item.

        Args:
            users: float32 [B, C] of the user tower.
            items: float32 [N, C] of the item tower.

        Returns:
            Logits of a softmax over the items, float32 [B, N].
        """
        return self.logits(self.user(users), self.item(items))

    def logits(self, users: Tensor, items: Tensor) -> Tensor:
        """Score every pair of a user vector and an item vector, [B, D], [N, D] -> [B, N]."""
        return users @ items.T / self.temperature
