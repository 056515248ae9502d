"""Serves gradient-boosted trees (Chen and Guestrin, 2016, arXiv:1603.02754)."""

import sys
from pathlib import Path
from typing import ClassVar

from handlers.feature_rows import FeatureRowsHandler, Scores
from handlers.schema import Matrix
from handlers.tree_inputs import ARCH_VERSION, BOOSTER_FILE, META_FILE, TreeInputs

# XGBoost imports scikit-learn, and with it pandas, where it finds them: 130 MB of a worker's
# memory that it never uses.
_without_sklearn = "sklearn" not in sys.modules
if _without_sklearn:
    sys.modules["sklearn"] = None  # type: ignore[assignment]
import xgboost as xgb  # noqa: E402

if _without_sklearn:
    del sys.modules["sklearn"]


class XgbHandler(FeatureRowsHandler):
    """Scores with an XGBoost booster: the probability of a click for each instance."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION

    def load_weights(self, model_dir: Path) -> None:
        """Load the booster and the maps to its inputs."""
        self.inputs = TreeInputs.load(model_dir)
        self.booster = xgb.Booster({"nthread": 1, "device": str(self.device)})
        self.booster.load_model(model_dir / BOOSTER_FILE)

    def score(self, matrix: Matrix) -> Scores:
        """Click probabilities, float32 [B]."""
        scores: Scores = self.booster.inplace_predict(self.inputs(matrix), validate_features=False)
        return scores
