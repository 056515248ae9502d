"""Handlers whose rows are features, as an object by name or as a vector in order."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.base import RecHandler
from handlers.schema import FeatureSchema, Matrix, read_vocabularies

Scores = npt.NDArray[np.float32]


class FeatureRowsHandler(RecHandler):
    """Encodes the rows of a batch as one matrix and scores it.

    A handler then only loads and scores::

        class DeepFMHandler(FeatureRowsHandler):
            meta_file = "deepfm_feature_meta.json"
            arch_version = 1

            def load_weights(self, model_dir): ...
            def score(self, matrix): ...

    Attributes:
        schema: Features of a row.

    Shapes: B instances, C matrix columns.
    """

    schema: FeatureSchema

    @abstractmethod
    def load_weights(self, model_dir: Path) -> None:
        """Load the model; ``schema``, ``meta``, ``config`` and ``device`` are set already."""

    @abstractmethod
    def score(self, matrix: Matrix) -> Scores:
        """Score instances.

        Args:
            matrix: Result of :meth:`FeatureSchema.matrix`, float32 [B, C].

        Returns:
            float32 [B] or [B, ...].
        """

    @property
    def features_meta(self) -> list[dict[str, Any]]:
        """Description of a row's features, from the meta file."""
        features: list[dict[str, Any]] = self.meta["features"]
        return features

    def load_model(self, model_dir: Path) -> None:
        """Load the schema, then the model."""
        self.schema = FeatureSchema.from_json(self.features_meta, read_vocabularies(model_dir))
        self.feature_names = self.schema.names
        self.load_weights(model_dir)

    def row_type(self, forbid_unknown: bool) -> Any:
        """Return the type of a row: an object or a vector of the schema's features."""
        return self.schema.row_type(forbid_unknown)

    def describe_features(self) -> list[dict[str, Any]]:
        """Describe each feature: its kind, default, training range, and how clients send it."""
        return [
            item | {"sent_as": feature.sent_as}
            for feature, item in zip(self.schema.features, self.schema.to_json(), strict=True)
        ]

    def predict(self, rows: list[Any]) -> Scores:
        """Score all rows as one matrix."""
        return self.score(
            self.schema.matrix(self.schema.raw_matrix(rows, self.counts), self.counts)
        )
