"""How ranking networks embed lists and categories."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from handlers.feature import FIRST_TOKEN_INDEX, Feature
from handlers.models.inputs import FeatureInputs
from handlers.schema import FeatureSchema
from training.data.feature_flags import EventFlags, split_names
from training.data.sources import DataError
from training.data.vectors import TokenVectors, read_vectors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingFlags(EventFlags):
    """How a network embeds lists and categories.

    Attributes:
        pooling: Whether a list is embedded as the mean or the sum of its values.
        embeddings: Vectors of categories, which training leaves as they are: names and files, such
            as item_id:vectors.parquet, separated by commas. A row of a file has a value and its
            vector. Values in the file that training never sees are known to the model too.
    """

    pooling: Literal["mean", "sum"] = "mean"
    embeddings: str = ""

    def drafts(self, features: Sequence[str], flag: str = "--features") -> list[Feature]:
        """Return features as the flags describe them, with the tokens that have vectors."""
        drafts = super().drafts(features, flag)
        paths = self._paths()
        self._expect("--embeddings", paths, [f.name for f in drafts if f.kind == "category"], flag)
        return [self._with_tokens(f, paths[f.name]) if f.name in paths else f for f in drafts]

    def input_options(self, schema: FeatureSchema) -> dict[str, Any]:
        """Return the arguments of :class:`FeatureInputs` that differ from their defaults.

        Args:
            schema: Schema of the inputs.
        """
        options: dict[str, Any] = {}
        if self.pooling != "mean":
            options["pooling"] = self.pooling
        if paths := self._paths():
            options["pretrained"] = {
                schema.columns[name].start: _read(path, name).vectors.shape[1]
                for name, path in paths.items()
            }
        return options

    def set_pretrained(self, inputs: FeatureInputs, schema: FeatureSchema) -> None:
        """Copy the vectors into a network.

        Args:
            inputs: Its input layer.
            schema: Schema of the inputs.
        """
        for name, path in self._paths().items():
            tokens, vectors = _read(path, name)
            [vocabulary] = (f.vocabulary for f in schema.features if f.name == name)
            index = {token: i for i, token in enumerate(vocabulary, FIRST_TOKEN_INDEX)}
            table = np.zeros((FIRST_TOKEN_INDEX + len(vocabulary), vectors.shape[1]), np.float32)
            table[[index[token] for token in tokens]] = vectors
            inputs.set_pretrained(schema.columns[name].start, torch.from_numpy(table))
            n_known = int(table.any(axis=1).sum())
            logger.info("%s: %d of %d values have a vector", name, n_known, len(vocabulary))

    def _with_tokens(self, feature: Feature, path: str) -> Feature:
        if feature.hash_buckets or feature.hash_ids:
            raise DataError(f"--embeddings {feature.name}: leave --hash and --hash-ids out")
        return replace(feature, vocabulary=tuple(_read(path, feature.name).tokens))

    def _paths(self) -> dict[str, str]:
        paths = {}
        for part in split_names(self.embeddings):
            name, _, path = part.partition(":")
            if not path:
                raise DataError(
                    f"--embeddings {part}: expected a category and a file, such as "
                    "item_id:vectors.parquet"
                )
            paths[name] = path
        return paths


@lru_cache
def _read(path: str, name: str) -> TokenVectors:
    return read_vectors(path, name)
