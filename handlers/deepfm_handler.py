"""Serves DeepFM."""

from pathlib import Path
from typing import ClassVar

import torch

from handlers.feature_rows import FeatureRowsHandler, Scores
from handlers.networks import load_network
from handlers.networks.deepfm import ARCH_VERSION, META_FILE, WEIGHTS_FILE, DeepFM
from handlers.schema import Matrix


class DeepFMHandler(FeatureRowsHandler):
    """Scores with a DeepFM network: the probability of a click for each instance."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION

    def load_weights(self, model_dir: Path) -> None:
        """Load the network."""
        self.network = load_network(DeepFM, model_dir / WEIGHTS_FILE, self.device)

    @torch.inference_mode()
    def score(self, matrix: Matrix) -> Scores:
        """Click probabilities, float32 [B]."""
        logits = self.network(torch.from_numpy(matrix).to(self.device))
        scores: Scores = torch.sigmoid(logits).cpu().numpy()
        return scores
