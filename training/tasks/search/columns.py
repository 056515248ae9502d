"""Encoding of the columns of a query or a document, as features or as a text.

Shapes: B rows, C matrix columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from handlers.feature import Feature
from handlers.models.text import TokenBags
from handlers.schema import FeatureSchema
from training.data.features import to_matrix
from training.golden import golden_matrix

# Encoded queries or documents, as a tower takes them: a matrix, float32 [B, C], or B texts.
Inputs = Tensor | TokenBags


@dataclass(frozen=True)
class FeatureColumns:
    """Columns of features."""

    schema: FeatureSchema

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Encode rows as a matrix, float32 [B, C]."""
        return torch.from_numpy(to_matrix(self.schema, frame))

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Encode request rows as a matrix, float32 [B, C]."""
        return torch.from_numpy(golden_matrix(self.schema, rows))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the columns as the meta file records them."""
        return self.schema.to_json()


@dataclass(frozen=True)
class TextColumn:
    """A column of texts."""

    name: str

    @property
    def schema(self) -> FeatureSchema:
        """Schema of a request row: a text is a string or a number, as a category is."""
        return FeatureSchema([Feature(self.name, kind="category")])

    def encode(self, frame: pd.DataFrame) -> TokenBags:
        """Encode rows as texts; a missing text is empty."""
        return TokenBags.of(frame[self.name].fillna(""))

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> TokenBags:
        """Encode request rows as texts."""
        return self.encode(pd.DataFrame(rows))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the column as the meta file records it."""
        return [{"name": self.name, "kind": "text", "default": ""}]
