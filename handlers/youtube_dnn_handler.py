"""Serves the user side of YouTube's candidate generation network."""

import json
from pathlib import Path
from typing import Any, ClassVar, get_args

import msgspec
import numpy as np
import torch
from msgspec.structs import astuple

from handlers.base import Predictions, RecHandler, Vectors
from handlers.models.weights import load_network
from handlers.models.youtube_dnn import (
    ARCH_VERSION,
    FEATURES_KEY,
    HISTORY_KEY,
    META_FILE,
    WEIGHTS_FILE,
    YouTubeDNN,
    pad_histories,
)
from handlers.schema import (
    OOV_INDEX,
    VOCABULARIES_FILE,
    Feature,
    FeatureCounts,
    FeatureSchema,
    Token,
)


class YouTubeDNNHandler(RecHandler):
    """Embeds users by their features and by the items that they took."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION
    flat_single: ClassVar[bool] = True

    def load_model(self, model_dir: Path) -> None:
        """Load the network, the users' features and the vocabulary of items."""
        vocabularies = json.loads((model_dir / VOCABULARIES_FILE).read_text())
        self.schema = FeatureSchema.from_json(self.meta["features"], vocabularies)
        item = Feature(HISTORY_KEY, kind="category", vocabulary=tuple(vocabularies[HISTORY_KEY]))
        self.items = FeatureSchema([item])
        self.feature_names = (*self.schema.names, HISTORY_KEY)
        self.network = load_network(YouTubeDNN, model_dir / WEIGHTS_FILE, self.device)

    def row_type(self, forbid_unknown: bool) -> Any:
        """Features and history under their keys; or bare features, as an object or a vector."""
        features, vector = get_args(self.schema.row_type(forbid_unknown))
        row = msgspec.defstruct(
            "Row",
            [(FEATURES_KEY, features | None, None), (HISTORY_KEY, list[Token | None] | None, None)],
            bases=(features,),
            forbid_unknown_fields=forbid_unknown,
            gc=False,
        )
        return row | vector

    @property
    def known_keys(self) -> tuple[str, ...]:
        """The features, the history and what the features are wrapped in."""
        return (FEATURES_KEY, *self.feature_names)

    def describe_features(self) -> list[dict[str, Any]]:
        """The users' features, and the size of the vocabulary of items."""
        return [*self.schema.to_json(), *self.items.to_json()]

    @torch.inference_mode()
    def predict(self, rows: list[Any]) -> Predictions:
        """Vectors of length 1, float32 [B, D]."""
        features, histories = zip(*map(_parts, rows), strict=True)
        c = self.counts  # the history's are the last
        counts = FeatureCounts(c.missing[:-1], c.out_of_range[:-1], c.out_of_vocabulary[:-1])
        matrix = self.schema.matrix(self.schema.raw_matrix(features), counts)
        users = torch.from_numpy(matrix).to(self.device)
        vectors: Predictions = self.network(users, self._indices(histories)).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """The rows of the table that histories are read by."""
        index = self.items.raw_columns({HISTORY_KEY: items})[:, 0].astype(np.int64)
        table = self.network.item_vectors(torch.from_numpy(index).to(self.device))
        vectors: Vectors = table.cpu().numpy()
        vectors[index == OOV_INDEX] = np.nan
        return vectors

    def _indices(self, histories: tuple[list[Token | None], ...]) -> torch.Tensor:
        """Items -> indices, int64 [B, L]; null ones are left out, they and unknown ones counted."""
        self.counts.missing[-1] += sum(history.count(None) for history in histories)
        recent = [
            [token for token in history if token is not None][-self.network.max_history :]
            for history in histories
        ]
        flat = [token for history in recent for token in history]
        column = self.items.raw_columns({HISTORY_KEY: flat})[:, 0].astype(np.int64)
        self.counts.out_of_vocabulary[-1] += (column == OOV_INDEX).sum()
        ends = np.cumsum([len(history) for history in recent])
        padded = pad_histories(np.split(column, ends[:-1]), self.network.max_history)
        return padded.to(self.device)


def _parts(row: Any) -> tuple[tuple[Any, ...], list[Token | None]]:
    """The features' values in the schema's order, and the history."""
    if type(row) is tuple:
        return row, []
    *bare, features, history = astuple(row)
    return tuple(bare) if features is None else astuple(features), history or []
