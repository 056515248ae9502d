"""Serves the user side of YouTube's candidate generation network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from handlers.base import Predictions, Vectors
from handlers.feature import OOV_INDEX
from handlers.histories import ItemHistories
from handlers.models.weights import load_network
from handlers.models.youtube_dnn import ARCH_VERSION, META_FILE, WEIGHTS_FILE, YouTubeDNN
from handlers.request_rows import HISTORY_KEY, USER_FEATURES_KEY
from handlers.schema import FeatureSchema, read_vocabularies
from handlers.values import Id
from handlers.wrapped_rows import WrappedRowsHandler


class YouTubeDNNHandler(WrappedRowsHandler):
    """Embeds users by their features and their history of items."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION
    flat_single: ClassVar[bool] = True
    features_key: ClassVar[str] = USER_FEATURES_KEY

    def load_model(self, model_dir: Path) -> None:
        """Load the network, the user features and the item vocabulary."""
        vocabularies = read_vocabularies(model_dir)
        self.schema = FeatureSchema.from_json(self.meta["features"], vocabularies)
        self.feature_names = (*self.schema.names, HISTORY_KEY)
        self.network = load_network(YouTubeDNN, model_dir / WEIGHTS_FILE, self.device)
        self.histories = ItemHistories(vocabularies[HISTORY_KEY], self.network.max_history)

    def other_fields(self, forbid_unknown: bool) -> Mapping[str, Any]:
        """Return the type of the history: a list of items, which may be null."""
        return {HISTORY_KEY: list[Id | None]}

    def describe_features(self) -> list[dict[str, Any]]:
        """Describe the user features and the item vocabulary."""
        return [*self.schema.to_json(), *self.histories.schema.to_json()]

    @torch.inference_mode()
    def predict(self, rows: list[Any]) -> Predictions:
        """Compute user embeddings of unit length, float32 [B, D]."""
        counts = self.counts.first(len(self.schema.features))
        raw = self.schema.raw_matrix(self.feature_values(rows), counts)
        matrix = self.schema.matrix(raw, counts)
        histories = [history or [] for history in self.other_values(rows, HISTORY_KEY)]
        padded = self.histories.padded(histories, self.counts)
        users = torch.from_numpy(matrix).to(self.device)
        vectors: Predictions = self.network(users, padded.to(self.device)).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Return the items' rows of the table that also embeds histories."""
        index = self.histories.index(items)
        table = self.network.item_vectors(torch.from_numpy(index).to(self.device))
        vectors: Vectors = table.cpu().numpy()
        vectors[index == OOV_INDEX] = np.nan
        return vectors
