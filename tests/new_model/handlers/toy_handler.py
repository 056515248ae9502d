"""Serves the toy model."""

from pathlib import Path
from typing import ClassVar

from handlers.models.toy import ARCH_VERSION, META_FILE, Toy

from handlers.feature_rows import FeatureRowsHandler, Scores
from handlers.schema import Matrix


class ToyHandler(FeatureRowsHandler):
    """Predicts the probability of a click for each instance."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION

    def load_weights(self, model_dir: Path) -> None:
        """Load the weights."""
        self.toy = Toy.load(model_dir)

    def score(self, matrix: Matrix) -> Scores:
        """Predict click probabilities, float32 [B]."""
        return self.toy(matrix)
