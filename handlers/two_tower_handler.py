"""Serves one tower of the two-tower model."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from handlers.base import CHUNK_ROWS, Vectors
from handlers.feature_rows import FeatureRowsHandler, Scores
from handlers.models.two_tower import ARCH_VERSION, META_FILE, WEIGHTS_FILE, TwoTower
from handlers.models.weights import load_network
from handlers.schema import FeatureSchema, Matrix, read_vocabularies


class TwoTowerHandler(FeatureRowsHandler):
    """Embeds users or items, depending on ``tower`` in the config."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION
    flat_single: ClassVar[bool] = True

    @property
    def features_meta(self) -> list[dict[str, Any]]:
        """Description of the tower's features, from the meta file."""
        features: list[dict[str, Any]] = self.meta[f"{self.config['tower']}_features"]
        return features

    def load_weights(self, model_dir: Path) -> None:
        """Load the tower."""
        network = load_network(TwoTower, model_dir / WEIGHTS_FILE, self.device)
        self.tower = {"user": network.user, "item": network.item}[self.config["tower"]]

    @torch.inference_mode()
    def score(self, matrix: Matrix) -> Scores:
        """Compute embeddings of unit length, float32 [B, D]."""
        vectors: Scores = self.tower(torch.from_numpy(matrix).to(self.device)).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Compute item embeddings from the items' features."""
        vocabularies = read_vocabularies(model_dir)
        schema = FeatureSchema.from_json(self.meta["item_features"], vocabularies)
        tower = load_network(TwoTower, model_dir / WEIGHTS_FILE, self.device).item
        matrix = torch.from_numpy(schema.encode(items)).to(self.device)
        parts = [tower(part) for part in torch.split(matrix, CHUNK_ROWS)]
        vectors: Vectors = torch.cat(parts).cpu().numpy()
        return vectors
