"""Handlers whose rows are features: an object by name, or a vector in order."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.base import RecHandler
from handlers.schema import VOCABULARIES_FILE, FeatureSchema, Matrix

Scores = npt.NDArray[np.float32]


class FeatureRowsHandler(RecHandler):
    """Turns the rows of a batch into one matrix, and scores it.

    A model's handler is then short::

        class DeepFMHandler(FeatureRowsHandler):
            meta_file = "deepfm_feature_meta.json"
            arch_version = 1

            def load_weights(self, model_dir): ...
            def score(self, matrix): ...

    Attributes:
        schema: Of the model's inputs.

    Shapes: B instances, C matrix columns.
    """

    schema: FeatureSchema

    @abstractmethod
    def load_weights(self, model_dir: Path) -> None:
        """Load what scores; ``schema``, ``meta``, ``config`` and ``device`` are set."""

    @abstractmethod
    def score(self, matrix: Matrix) -> Scores:
        """Score instances.

        Args:
            matrix: As :meth:`FeatureSchema.matrix` makes it, float32 [B, C].

        Returns:
            float32 [B] or [B, ...].
        """

    @property
    def features_meta(self) -> list[dict[str, Any]]:
        """The part of the meta file that describes a row's features."""
        features: list[dict[str, Any]] = self.meta["features"]
        return features

    def load_model(self, model_dir: Path) -> None:
        """Read the schema, then the weights."""
        vocabularies = json.loads((model_dir / VOCABULARIES_FILE).read_text())
        self.schema = FeatureSchema.from_json(self.features_meta, vocabularies)
        self.feature_names = self.schema.names
        self.load_weights(model_dir)

    def row_type(self, forbid_unknown: bool) -> Any:
        """An object of the schema's features, or a vector of them."""
        return self.schema.row_type(forbid_unknown)

    def describe_features(self) -> list[dict[str, Any]]:
        """Type, default and training range of each feature."""
        return self.schema.to_json()

    def predict(self, rows: list[Any]) -> Scores:
        """One matrix for all rows, scored at once."""
        return self.score(self.schema.matrix(self.schema.raw_matrix(rows), self.counts))
