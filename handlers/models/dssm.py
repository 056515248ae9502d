"""DSSM, the deep structured semantic model (Huang et al., 2013, doi:10.1145/2505515.2505665).

As in the paper, the score of a query and a document is the cosine of the vectors of two towers, and
the input of a tower is the hashed letter trigrams of a text. It differs in three ways: words are
inputs too; each token is weighted by its rarity; and a tower is only the table of token embeddings,
because more layers did worse. A query or a document may also be features, with the towers of the
two-tower model.

Shapes: B queries, N documents, D embedding dim, C matrix columns, T tokens of all texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding_bag, normalize

from handlers.feature import Cardinality
from handlers.models.layers import Tower
from handlers.models.text import N_BUCKETS, TokenBags

ARCH_VERSION = 3
META_FILE = "dssm_meta.json"
WEIGHTS_FILE = "dssm_model.pt"

INITIAL_SLOPE = 10.0


class DSSM(nn.Module):
    """A tower for queries and one for documents.

    Attributes:
        query: Maps B queries to vectors of unit length, float32 [B, D].
        doc: Maps N documents to vectors of unit length, float32 [N, D].
        config: Arguments of the constructor. Its key is ``embed_dim``, not ``embedding_dim``,
            because it is part of the weights file.
    """

    query: nn.Module
    doc: nn.Module
    config: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.log_slope = nn.Parameter(torch.tensor(math.log(INITIAL_SLOPE)))
        self.intercept = nn.Parameter(torch.tensor(0.0))

    def logits(self, cosines: Tensor) -> Tensor:
        """Convert cosines to logits of the probability of relevance, same shape.

        A logit always rises with the cosine, so the nearest document is the most probable.
        """
        return self.log_slope.exp() * cosines + self.intercept


class FeatureDSSM(DSSM):
    """DSSM for features: matrices of raw values, float32 [B, C] and [N, C].

    Args:
        query_cardinalities: For each matrix column of a query, the number of indices of a category,
            0 for a number.
        doc_cardinalities: Likewise for a document.
        layers: Widths of the hidden layers of both towers.
        embed_dim: D.
        feature_dim: Width of the embedding of one input.
    """

    query: Tower
    doc: Tower

    def __init__(
        self,
        query_cardinalities: Sequence[Cardinality],
        doc_cardinalities: Sequence[Cardinality],
        layers: Sequence[int] = (128, 64),
        embed_dim: int = 64,
        feature_dim: int = 8,
    ) -> None:
        super().__init__()
        self.config = {
            "query_cardinalities": list(query_cardinalities),
            "doc_cardinalities": list(doc_cardinalities),
            "layers": list(layers),
            "embed_dim": embed_dim,
            "feature_dim": feature_dim,
        }
        self.query = Tower(query_cardinalities, layers, embed_dim, feature_dim)
        self.doc = Tower(doc_cardinalities, layers, embed_dim, feature_dim)


class TextDSSM(DSSM):
    """DSSM for texts.

    Args:
        embed_dim: D.
        token_dropout: Share of tokens hidden in training.
    """

    query: TextTower
    doc: TextTower

    def __init__(self, embed_dim: int = 64, token_dropout: float = 0.0) -> None:
        super().__init__()
        self.config = {"embed_dim": embed_dim, "token_dropout": token_dropout}
        self.query = TextTower(embed_dim, token_dropout)
        self.doc = TextTower(embed_dim, token_dropout)


class TextTower(nn.Module):
    """Sums the vectors of a text's tokens, weighted by their inverse document frequency.

    Args:
        embedding_dim: D.
        token_dropout: Share of tokens hidden in training.
    """

    idf: Tensor  # [N_BUCKETS], 0 for tokens that training never saw

    def __init__(self, embedding_dim: int, token_dropout: float) -> None:
        super().__init__()
        self.token_dropout = token_dropout
        self.vectors = nn.Parameter(torch.randn(N_BUCKETS, embedding_dim) * 0.1)
        self.register_buffer("idf", torch.zeros(N_BUCKETS))

    def fit(self, bags: TokenBags) -> None:
        """Compute the weights of tokens from distinct training texts."""
        owner = torch.arange(len(bags)).repeat_interleave(bags.lengths)
        distinct = torch.unique(owner * N_BUCKETS + bags.tokens) % N_BUCKETS
        n_texts = torch.bincount(distinct, minlength=N_BUCKETS)
        idf = ((1 + len(bags)) / (1 + n_texts)).log() + 1
        self.idf.copy_(torch.where(n_texts > 0, idf, 0.0))

    def forward(self, bags: TokenBags) -> Tensor:
        """Embed texts.

        Args:
            bags: B texts.

        Returns:
            Vectors of unit length, or zeros for a text without a known token, float32 [B, D].
        """
        weights = dropout(self.idf[bags.tokens], self.token_dropout, self.training)  # [T]
        summed = embedding_bag(
            bags.tokens, self.vectors, bags.offsets, mode="sum", per_sample_weights=weights
        )
        return normalize(summed, dim=1)
