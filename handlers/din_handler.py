"""Serves DIN."""

from pathlib import Path
from typing import ClassVar

import torch

from handlers.feature_rows import FeatureRowsHandler, Scores
from handlers.models.din import ARCH_VERSION, DIN, META_FILE, WEIGHTS_FILE
from handlers.models.weights import load_network, traced
from handlers.schema import Matrix


class DINHandler(FeatureRowsHandler):
    """Predicts the click probability of each instance."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION

    def load_weights(self, model_dir: Path) -> None:
        """Load the network."""
        network = load_network(DIN, model_dir / WEIGHTS_FILE, self.device)
        example = torch.zeros(2, self.schema.n_columns, device=self.device)
        self.click_probability = traced(lambda matrix: network(matrix).sigmoid(), example)
        self.for_one_history = traced(lambda matrix: network(matrix, True).sigmoid(), example)
        [self.history] = (
            self.schema.columns[f.name] for f in self.schema.features if f.kind == "history"
        )

    @torch.inference_mode()
    def score(self, matrix: Matrix) -> Scores:
        """Compute click probabilities, float32 [B]."""
        histories = matrix[:, self.history]
        # The rows of a request are usually candidates for the same user.
        is_shared = (histories == histories[0]).all()
        score = self.for_one_history if is_shared else self.click_probability
        scores: Scores = score(torch.from_numpy(matrix).to(self.device)).cpu().numpy()
        return scores
