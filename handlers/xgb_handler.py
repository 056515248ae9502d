"""Serves gradient-boosted trees (Chen and Guestrin, 2016, arXiv:1603.02754)."""

from pathlib import Path
from typing import ClassVar

from handlers.feature_rows import FeatureRowsHandler, Scores
from handlers.models.xgb import ARCH_VERSION, BOOSTER_FILE, META_FILE, DenseBooster, TreeInputs
from handlers.schema import Matrix


class XgbHandler(FeatureRowsHandler):
    """Predicts the click probability of each instance."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION

    def load_weights(self, model_dir: Path) -> None:
        """Load the booster and the encoding of its inputs."""
        self.inputs = TreeInputs.load(model_dir)
        self.booster = DenseBooster(model_dir / BOOSTER_FILE, str(self.device))

    def score(self, matrix: Matrix) -> Scores:
        """Compute click probabilities, float32 [B]."""
        return self.booster(self.inputs(matrix))
