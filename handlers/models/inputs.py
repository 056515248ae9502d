"""The input layer for raw feature values.

Logarithms, standardization, bins and missing flags are computed in the network from its buffers.
Serving therefore passes raw columns and cannot prepare them differently from training.

Shapes: B instances, C matrix columns (N numbers, K categories, P lists), D embedding dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handlers.feature import MISSING_INDEX, Cardinality

# Standardized values are clamped to this: an absurd price must not drown the other features.
MAX_STANDARDIZED = 8.0


class ListColumns(NamedTuple):
    """The matrix columns of a list of indices.

    Attributes:
        columns: The columns; 0 after the last token.
        offset: First row of its tokens in the table.
    """

    columns: slice
    offset: int


class History(NamedTuple):
    """A list whose tokens a category has too, so that they share its rows of the table.

    Attributes:
        columns: The columns; 0 after the last token.
        offset: First row of the tokens in the table.
        field: Position of the category among the embedded fields.
        category: Position of the category among the categories.
    """

    columns: slice
    offset: int
    field: int
    category: int


class Embedded(NamedTuple):
    """A batch with the items of its histories.

    Attributes:
        z: Standardized numbers, 0 for missing, float32 [B, N].
        fields: Embeddings, float32 [B, N + K + P, D].
        items: Items of the histories, float32 [B, L, E], where E is D times the number of
            histories; or of one that all share, [1, L, E].
        target: The items that they are compared with, float32 [B, E].
        is_item: Whether there is an item, bool [B, L] or [1, L].
    """

    z: Tensor
    fields: Tensor
    items: Tensor
    target: Tensor
    is_item: Tensor


class FeatureInputs(nn.Module):
    """Standardizes numbers, and embeds their quantile bins and the tokens in one table.

    The fields are the numbers, the categories and the lists that are no history, in this order.

    Args:
        cardinalities: :attr:`handlers.schema.FeatureSchema.cardinalities`.
        embedding_dim: D.
        n_bins: Quantile bins of each number, without the one for missing values.
        pooling: Whether a list is embedded as the mean or the sum of its tokens.
        pretrained: Number of components of the vectors that :meth:`set_pretrained` gets, by the
            matrix column of a category.

    Attributes:
        numbers: Matrix columns of the numbers, N.
        categories: Matrix columns of the categories, K.
        lists: The lists that are no history, P.
        histories: The histories; a model embeds them by :meth:`with_histories`.
        n_fields: Number of fields, N + K + P.
        sizes: Number of rows of each field in the table.
    """

    is_log: Tensor  # bool [N]
    floor: Tensor  # [N], smallest training value of a column with a log scale
    mean: Tensor  # [N]
    std: Tensor  # [N]
    edges: Tensor  # [N, n_bins], upper bounds of the bins; the last is infinite
    offsets: Tensor  # int64 [N + K], first row of each number and category in the table

    def __init__(
        self,
        cardinalities: Sequence[Cardinality],
        embedding_dim: int,
        n_bins: int = 16,
        pooling: str = "mean",
        pretrained: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        entries = [(entry,) if isinstance(entry, int) else tuple(entry) for entry in cardinalities]
        starts = [0, *accumulate(entry[1] if len(entry) > 1 else 1 for entry in entries)]
        columns = list(zip(starts, entries, strict=False))
        self.numbers = [start for start, entry in columns if entry == (0,)]
        self.categories = [start for start, entry in columns if len(entry) == 1 and entry != (0,)]
        lists = [(start, entry) for start, entry in columns if len(entry) == 2]
        self._only_numbers = len(self.numbers) == starts[-1]
        n = len(self.numbers)
        self.register_buffer("is_log", torch.zeros(n, dtype=torch.bool))
        self.register_buffer("floor", torch.zeros(n))
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("std", torch.ones(n))
        self.register_buffer("edges", torch.full((n, n_bins), torch.inf))
        sizes = [n_bins + 1] * n
        sizes += [n for start, (n, *_) in columns if start in self.categories]
        sizes += [n for _, (n, _) in lists]
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.sizes, self.n_fields = sizes, len(sizes)
        self.lists = [
            ListColumns(slice(start, start + length), offset)
            for (start, (_, length)), offset in zip(
                lists, offsets[len(sizes) - len(lists) :].tolist(), strict=True
            )
        ]
        self.histories = [
            History(
                slice(start, start + entry[1]), int(offsets[n + category]), n + category, category
            )
            for start, entry in columns
            if len(entry) == 3
            for category in [self.categories.index(entry[2])]
        ]
        self.register_buffer("offsets", offsets[: n + len(self.categories)], persistent=False)
        self.pooling = pooling
        self.embedding = nn.Embedding(sum(sizes), embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.01)
        self.value_embedding = nn.Parameter(torch.randn(n, embedding_dim) * 0.01)
        self.pretrained = nn.ModuleDict(
            {
                str(self.categories.index(column)): PretrainedVectors(
                    sizes[n + self.categories.index(column)], n_components, embedding_dim
                )
                for column, n_components in pretrained.items()
            }
        )

    @property
    def list_columns(self) -> list[slice]:
        """Matrix columns of each list and history."""
        parts: list[ListColumns | History] = [*self.lists, *self.histories]
        return [part.columns for part in parts]

    def set_pretrained(self, column: int, vectors: Tensor) -> None:
        """Set the fixed vectors of a category.

        Args:
            column: Its matrix column.
            vectors: A vector for each index, zeros for one that has none, float32 [indices, M].
        """
        table = self.pretrained[str(self.categories.index(column))]
        table.get_buffer("vectors").copy_(vectors)

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
            Standardized numbers, 0 for missing, float32 [B, N]; and embeddings, 0 for an empty
            list, [B, N + K + P, D].
        """
        z, fields, _ = self._embed(matrix, [])
        return z, fields

    def with_histories(self, matrix: Tensor, one_history: bool = False) -> Embedded:
        """Standardize and embed a batch, the items of its histories too.

        Several histories are the hashes of one.

        Args:
            matrix: As for :meth:`forward`.
            one_history: Whether all instances have the history of the first one.
        """
        histories = matrix[:1] if one_history else matrix
        indices = [_tokens(histories, history.columns) for history in self.histories]
        offsets = [history.offset for history in self.histories]
        rows = [index + offset for index, offset in zip(indices, offsets, strict=True)]
        z, fields, items = self._embed(matrix, rows)
        for i, history in enumerate(self.histories):
            if (key := str(history.category)) in self.pretrained:
                items[i] = items[i] + self.pretrained[key](indices[i])
        targets = [fields[:, history.field] for history in self.histories]
        is_item = indices[0] != MISSING_INDEX
        if len(items) == 1:
            return Embedded(z, fields, items[0], targets[0], is_item)
        return Embedded(z, fields, torch.cat(items, dim=2), torch.cat(targets, dim=1), is_item)

    def _embed(self, matrix: Tensor, more: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Standardize and embed a batch, and look up more rows of the table, int64 [..]."""
        # On a small batch every operation takes 1 to 5 us, so fewer operations take less time.
        raw = matrix if self._only_numbers else matrix[:, self.numbers]  # [B, N]
        logs = torch.maximum(raw, self.floor).log()
        z = (torch.where(self.is_log, logs, raw) - self.mean) / self.std
        z = z.clamp(-MAX_STANDARDIZED, MAX_STANDARDIZED).nan_to_num()
        # NaN sorts after infinity, so a missing number gets the bin after the last quantile.
        index = torch.searchsorted(self.edges, raw.T.contiguous(), right=True).T  # [B, N]
        if self._only_numbers:
            embedded = self.embedding(index + self.offsets)  # [B, N, D]
            return z, torch.addcmul(embedded, z.unsqueeze(2), self.value_embedding), []
        categories = matrix[:, self.categories].long()  # [B, K]
        index = torch.cat([index, categories], dim=1) + self.offsets
        tokens = [_tokens(matrix, part.columns) for part in self.lists]
        rows = [index + part.offset for index, part in zip(tokens, self.lists, strict=True)]
        embedded, *others = self._look_up([index, *rows, *more])
        parts = embedded.split_with_sizes([len(self.numbers), len(self.categories)], dim=1)
        fields = [torch.addcmul(parts[0], z.unsqueeze(2), self.value_embedding), parts[1]]
        if self.pretrained:
            fields[1] = self._with_pretrained(fields[1], categories)
        lists = zip(tokens, others, strict=False)
        fields += [self._pooled(index, vectors) for index, vectors in lists]
        return z, torch.cat(fields, dim=1), others[len(tokens) :]

    def _look_up(self, indices: list[Tensor]) -> list[Tensor]:
        """Look up rows of the table, int64 [..] -> float32 [.., D]."""
        # One look-up, since each has a gradient with the shape of the whole table. index_select
        # computes it three times as fast as nn.Embedding.
        index = torch.cat([index.flatten() for index in indices])
        vectors = self.embedding.weight.index_select(0, index)
        parts = vectors.split_with_sizes([index.numel() for index in indices])
        shapes = [(*index.shape, self.embedding.embedding_dim) for index in indices]
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _pooled(self, index: Tensor, vectors: Tensor) -> Tensor:
        """Pool the vectors of the tokens of a list, [B, L], [B, L, D] -> float32 [B, 1, D]."""
        is_token = (index != MISSING_INDEX).to(vectors.dtype).unsqueeze(1)
        if self.pooling == "mean":
            is_token = is_token / is_token.sum(2, keepdim=True).clamp_min(1)
        return torch.bmm(is_token, vectors)

    def _with_pretrained(self, vectors: Tensor, categories: Tensor) -> Tensor:
        """Add the projected vectors of the categories that have some, float32 [B, K, D]."""
        columns = list(vectors.unbind(dim=1))
        for key, table in self.pretrained.items():
            columns[int(key)] = columns[int(key)] + table(categories[:, int(key)])
        return torch.stack(columns, dim=1)


class PretrainedVectors(nn.Module):
    """Fixed vectors of tokens, and a learned projection to the width of the embeddings.

    Args:
        n_tokens: Number of tokens.
        n_components: Components of a fixed vector.
        embedding_dim: D.
    """

    vectors: Tensor  # [n_tokens, n_components]

    def __init__(self, n_tokens: int, n_components: int, embedding_dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(n_tokens, n_components))
        self.projection = nn.Linear(n_components, embedding_dim, bias=False)

    def forward(self, index: Tensor) -> Tensor:
        """Project the vectors of tokens, int64 [...] -> float32 [..., D]."""
        projected: Tensor = self.projection(self.vectors[index])
        return projected


def _quantiles(values: Tensor, n: int) -> Tensor:
    """Return n inner quantiles, as values: torch.quantile refuses more than 16M values."""
    ordered = values.sort().values
    at = torch.linspace(0, len(ordered) - 1, n + 2)[1:-1].round().long()
    return ordered[at]


def _tokens(matrix: Tensor, columns: slice) -> Tensor:
    """Return the indices of lists up to the end of the longest one, int64 [B, L]."""
    index = matrix[:, columns]
    # A recorded network must work for any batch.
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        index = index[:, : max(1, int((index != MISSING_INDEX).sum(1).max()))]
    return index.long()
