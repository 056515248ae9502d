"""Serves the query tower of DSSM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import msgspec
import torch
from msgspec.structs import astuple

from handlers.base import CHUNK_ROWS, Predictions, RecHandler, Vectors
from handlers.models.dssm import ARCH_VERSION, META_FILE, WEIGHTS_FILE, FeatureDSSM, TextDSSM
from handlers.models.text import TokenBags, buckets, words
from handlers.models.weights import load_network
from handlers.schema import VOCABULARIES_FILE, Feature, FeatureSchema, canonical_token


class DSSMHandler(RecHandler):
    """Embeds queries, which are features or one text."""

    meta_file: ClassVar[str] = META_FILE
    arch_version: ClassVar[int] = ARCH_VERSION
    flat_single: ClassVar[bool] = True

    def load_model(self, model_dir: Path) -> None:
        """Load the network, and what a query is."""
        weights, features = model_dir / WEIGHTS_FILE, self.meta["features"]
        self.network: FeatureDSSM | TextDSSM
        self.encode_queries: Callable[[list[tuple[Any, ...]]], torch.Tensor | TokenBags]
        if self.meta["text"]:
            self.network = load_network(TextDSSM, weights, self.device)
            self.known = (self.network.query.idf > 0).tolist()
            # For the decoder a text is like a category: a string, or a number that stands for one.
            self.schema = FeatureSchema([Feature(features[0]["name"], kind="category")])
            self.encode_queries = self._texts
        else:
            self.network = load_network(FeatureDSSM, weights, self.device)
            vocabularies = json.loads((model_dir / VOCABULARIES_FILE).read_text())
            self.schema = FeatureSchema.from_json(features, vocabularies)
            self.encode_queries = self._matrix
        self.feature_names = self.schema.names

    def row_type(self, forbid_unknown: bool) -> Any:
        """A query as an object, or wrapped as ``{"query_features": {...}}``, or as a vector."""
        query, vector = get_args(self.schema.row_type(forbid_unknown))
        row = msgspec.defstruct(
            "Row",
            [("query_features", query | None, None)],
            bases=(query,),
            forbid_unknown_fields=forbid_unknown,
            gc=False,
        )
        return row | vector

    @property
    def known_keys(self) -> tuple[str, ...]:
        """The wrapper's and the query's own."""
        return ("query_features", *self.feature_names)

    def describe_features(self) -> list[dict[str, Any]]:
        """Of a query, as training described them."""
        features: list[dict[str, Any]] = self.meta["features"]
        return features

    @torch.inference_mode()
    def predict(self, rows: list[Any]) -> Predictions:
        """Vectors of length 1, float32 [B, D]."""
        queries = self.encode_queries([_values(row) for row in rows])
        vectors: Predictions = self.network.query(queries).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def embed_items(self, items: list[Any], model_dir: Path) -> Vectors:
        """Vectors of documents, which are features or one text."""
        features = self.meta["doc_features"]
        docs: torch.Tensor | TokenBags
        if self.meta["text"]:
            docs = TokenBags.of([doc.get(features[0]["name"], "") for doc in items])
        else:
            vocabularies = json.loads((model_dir / VOCABULARIES_FILE).read_text())
            schema = FeatureSchema.from_json(features, vocabularies)
            docs = torch.from_numpy(schema.encode(items))
        parts = torch.split(torch.arange(len(items)), CHUNK_ROWS)
        embedded = [self.network.doc(docs[part].to(self.device)) for part in parts]
        vectors: Vectors = torch.cat(embedded).cpu().numpy()
        return vectors

    def _matrix(self, queries: list[tuple[Any, ...]]) -> torch.Tensor:
        """Values of features -> a matrix, float32 [B, C]."""
        raw = self.schema.raw_matrix(queries)
        return torch.from_numpy(self.schema.matrix(raw, self.counts)).to(self.device)

    def _texts(self, queries: list[tuple[Any, ...]]) -> TokenBags:
        """Texts -> bags of tokens; their unknown words are counted as out of vocabulary."""
        texts = ["" if text is None else canonical_token(text) for (text,) in queries]
        self.counts.missing[0] += sum(text is None for (text,) in queries)
        self.counts.out_of_vocabulary[0] += sum(
            not self.known[buckets(word)[0]] for text in texts for word in words(text)
        )
        return TokenBags.of(texts).to(self.device)


def _values(row: Any) -> tuple[Any, ...]:
    """The query's values in the schema's order."""
    if type(row) is tuple:
        return row
    return astuple(row)[:-1] if row.query_features is None else astuple(row.query_features)
