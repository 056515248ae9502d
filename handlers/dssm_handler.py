"""Serves the query tower of DSSM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from handlers.base import CHUNK_ROWS, Predictions, Vectors
from handlers.feature import Feature
from handlers.models.dssm import ARCH_VERSION, META_FILE, WEIGHTS_FILE, FeatureDSSM, TextDSSM
from handlers.models.text import TokenBags, buckets, search_terms
from handlers.models.weights import load_network
from handlers.request_rows import QUERY_FEATURES_KEY
from handlers.schema import FeatureSchema, read_vocabularies
from handlers.values import to_text
from handlers.wrapped_rows import WrappedRowsHandler


class DSSMHandler(WrappedRowsHandler):
    """Embeds queries; a query is features or one text."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION
    flat_single: ClassVar[bool] = True
    features_key: ClassVar[str] = QUERY_FEATURES_KEY

    def load_model(self, model_dir: Path) -> None:
        """Load the network and the schema of a query."""
        weights, features = model_dir / WEIGHTS_FILE, self.meta["features"]
        self.network: FeatureDSSM | TextDSSM
        self.encode_queries: Callable[[list[tuple[Any, ...]]], torch.Tensor | TokenBags]
        if self.meta["text"]:
            self.network = load_network(TextDSSM, weights, self.device)
            self.known = (self.network.query.idf > 0).tolist()
            # A text is decoded like a category: a string, or a number that is read as a string.
            self.schema = FeatureSchema([Feature(features[0]["name"], kind="category")])
            self.encode_queries = self._texts
        else:
            self.network = load_network(FeatureDSSM, weights, self.device)
            self.schema = FeatureSchema.from_json(features, read_vocabularies(model_dir))
            self.encode_queries = self._matrix
        self.feature_names = self.schema.names

    def describe_features(self) -> list[dict[str, Any]]:
        """Describe the features of a query as training did."""
        features: list[dict[str, Any]] = self.meta["features"]
        return features

    @torch.inference_mode()
    def predict(self, rows: list[Any]) -> Predictions:
        """Compute query embeddings of unit length, float32 [B, D]."""
        queries = self.encode_queries(self.feature_values(rows))
        vectors: Predictions = self.network.query(queries).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Compute document embeddings; a document is features or one text."""
        features = self.meta["doc_features"]
        docs: torch.Tensor | TokenBags
        if self.meta["text"]:
            docs = TokenBags.of([doc.get(features[0]["name"], "") for doc in items])
        else:
            schema = FeatureSchema.from_json(features, read_vocabularies(model_dir))
            docs = torch.from_numpy(schema.encode(items))
        parts = torch.split(torch.arange(len(items)), CHUNK_ROWS)
        embedded = [self.network.doc(docs[part].to(self.device)) for part in parts]
        vectors: Vectors = torch.cat(embedded).cpu().numpy()
        return vectors

    def _matrix(self, queries: list[tuple[Any, ...]]) -> torch.Tensor:
        """Encode queries that are features, float32 [B, C]."""
        raw = self.schema.raw_matrix(queries, self.counts)
        return torch.from_numpy(self.schema.matrix(raw, self.counts)).to(self.device)

    def _texts(self, queries: list[tuple[Any, ...]]) -> TokenBags:
        """Tokenize queries that are texts; unknown words count as out of vocabulary."""
        texts = [to_text(text) or "" for (text,) in queries]
        self.counts.missing[0] += sum(text is None for (text,) in queries)
        self.counts.out_of_vocabulary[0] += sum(
            not self.known[buckets(term)[0]] for text in texts for term in search_terms(text)
        )
        return TokenBags.of(texts).to(self.device)
