"""Serves item2vec and word2vec."""

from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from handlers.base import RecHandler
from handlers.errors import RowError
from handlers.feature import FIRST_TOKEN_INDEX, Feature
from handlers.models.item2vec import (
    ARCH_VERSION,
    META_FILE,
    OUT_VECTORS_FILES,
    ROW_KEYS,
    VECTORS_FILES,
    TokenVectors,
    Vectors,
    word_tokens,
)
from handlers.schema import FeatureSchema
from handlers.values import Id

# Stands for every unknown word: the replacement character of Unicode.
UNKNOWN_WORD = "\ufffd"


class Item2VecHandler(RecHandler):
    """Embeds a sequence or a text as the mean vector of its known tokens."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION
    flat_single: ClassVar[bool] = True

    def load_model(self, model_dir: Path) -> None:
        """Load the vectors."""
        mode = self.meta["mode"]
        self.key = ROW_KEYS[mode]
        self.vectors = TokenVectors.load(model_dir / VECTORS_FILES[mode])
        self.words = frozenset(self.vectors.tokens if self.key == "text" else ())
        feature = Feature(self.key, kind="category", vocabulary=self.vectors.tokens)
        self.schema = FeatureSchema([feature])
        self.feature_names = self.schema.names

    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the type of a row: an object with a ``sequence`` of tokens or a ``text``."""
        value: Any = str if self.key == "text" else list[Id | None]
        return msgspec.defstruct(
            "Row", [(self.key, value | None, None)], forbid_unknown_fields=forbid_unknown
        )

    def describe_features(self) -> list[dict[str, Any]]:
        """Describe the vocabulary."""
        return self.schema.to_json()

    def predict(self, rows: list[Any]) -> Vectors:
        """Compute mean vectors, float32 [B, D]."""
        sequences = [self._tokens(getattr(row, self.key)) for row in rows]
        flat = [token for sequence in sequences for token in sequence]
        ends = np.cumsum([len(sequence) for sequence in sequences])
        try:
            column = self.schema.matrix(self.schema.raw_columns({self.key: flat}), self.counts)
        except RowError as error:
            raise error.in_lists(ends.tolist()) from None
        return self.vectors.means(np.split(column[:, 0].astype(np.int64), ends[:-1]))

    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Return the OUT vectors of tokens: close to the predictions for what precedes them."""
        index = self.schema.raw_columns({self.key: items})[:, 0].astype(np.int64)
        known = index >= FIRST_TOKEN_INDEX
        table = np.load(model_dir / OUT_VECTORS_FILES[self.meta["mode"]], allow_pickle=False)
        vectors = np.full((len(items), table.shape[1]), np.nan, dtype=np.float32)
        vectors[known] = table[index[known] - FIRST_TOKEN_INDEX]
        return vectors

    def _tokens(self, value: Any) -> list[Any]:
        if value is None:
            self.counts.missing[0] += 1
            return []
        if self.key != "text":
            tokens: list[Any] = value
            return tokens
        # A word is not an id: one that looks like a float of 2^53 or more is unknown, not refused.
        return [word if word in self.words else UNKNOWN_WORD for word in word_tokens(value)]
