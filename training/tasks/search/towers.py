"""The towers of DSSM, over features or over texts.

Shapes: B queries, N documents, D embedding dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from handlers.models.dssm import FeatureDSSM, TextDSSM
from handlers.models.layers import Tower
from handlers.models.text import TokenBags
from training.engine.fit import hide_tokens
from training.tasks.search.columns import Inputs
from training.tasks.search.data import SearchData

CHUNK_ROWS = 8192  # rows that a tower embeds in one call


def build_network(
    data: SearchData,
    *,
    embedding_dim: int,
    layers: Sequence[int],
    feature_dim: int,
    token_dropout: float,
) -> FeatureDSSM | TextDSSM:
    """Build a network with the statistics of the training split.

    Args:
        data: The data set, whose columns decide between features and texts.
        embedding_dim: D.
        layers: Widths of the hidden layers of a tower over features.
        feature_dim: Width of the embedding of one feature.
        token_dropout: Share of a text's tokens hidden in training.

    Raises:
        TypeError: If queries are texts and documents are features, or the other way round.
    """
    queries, docs = data.train.queries, data.docs[torch.arange(data.n_known)]
    if isinstance(queries, TokenBags) and isinstance(docs, TokenBags):
        of_texts = TextDSSM(embedding_dim, token_dropout)
        of_texts.query.fit(queries)
        of_texts.doc.fit(docs)
        return of_texts
    if isinstance(queries, Tensor) and isinstance(docs, Tensor):
        of_features = FeatureDSSM(
            data.query_columns.schema.cardinalities,
            data.doc_columns.schema.cardinalities,
            layers,
            embedding_dim,
            feature_dim,
        )
        of_features.query.inputs.fit(queries)
        of_features.doc.inputs.fit(docs)
        return of_features
    raise TypeError("queries and documents: expected features in both or texts in both")


def hide_categories(tower: nn.Module, inputs: Inputs) -> Inputs:
    """Hide some categories if the tower is in training; a text tower drops tokens itself."""
    if isinstance(inputs, Tensor) and isinstance(tower, Tower) and tower.training:
        return hide_tokens(inputs, tower.inputs)
    return inputs


def embed(tower: nn.Module, inputs: Inputs) -> Tensor:
    """Embed queries or documents in evaluation mode, float32 [B or N, D]."""
    tower.eval()
    with torch.no_grad():
        return torch.cat(
            [tower(inputs[i]) for i in torch.split(torch.arange(len(inputs)), CHUNK_ROWS)]
        )
