"""Examples of dssm for the shared tests: over features and over texts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from handlers.models.dssm import WEIGHTS_FILE, FeatureDSSM, TextDSSM
from handlers.models.weights import load_network
from handlers.request_rows import QUERY_FEATURES_KEY as WRAPPER
from handlers.schema import VOCABULARIES_FILE, FeatureSchema
from tests.examples import Example
from training import artifacts
from training.tasks.search.columns import FeatureColumns, TextColumn
from training.tasks.search.towers import embed
from training.tasks.search.world import (
    QUERY_COLUMNS,
    feature_pairs,
    generate_feature_pairs,
    generate_text_pairs,
    text_pairs,
)

CPU = torch.device("cpu")


def write_features(folder: Path) -> None:
    """Write a small copy of the default world."""
    generate_feature_pairs(folder, {"train": 1_500, "valid": 300, "test": 500})


def write_texts(folder: Path) -> None:
    """Write a small copy of the text world."""
    generate_text_pairs(folder, {"train": 3_000, "valid": 300, "test": 500})


def feature_rows() -> list[dict[str, Any]]:
    """Return request rows, most of them wrapped, some incomplete or unusual."""
    inputs, _ = feature_pairs(20, seed=9)
    queries = json.loads(inputs[list(QUERY_COLUMNS)].drop_duplicates().to_json(orient="records"))
    rows: list[dict[str, Any]] = [{WRAPPER: query} for query in queries]
    rows[1] = queries[1]
    rows[2][WRAPPER]["query_1"] = None
    rows[3][WRAPPER]["no_such_feature"] = 1.0
    rows[4][WRAPPER]["query_2"] = 1e300
    del rows[5][WRAPPER]["query_3"]
    rows[6] = {"query_1": 0.3}
    return rows


def text_rows() -> list[dict[str, Any]]:
    """Return request rows, some of them wrapped, some unusual."""
    inputs, _ = text_pairs(20, seed=9)
    texts = inputs["query"].tolist()
    rows: list[dict[str, Any]] = [{WRAPPER: {"query": text}} for text in texts]
    rows[1] = {"query": texts[1]}
    rows[2] = {"query": f"  {texts[2].upper()}?! ÄÖ 你好"}
    rows[3] = {"query": None}
    rows[4] = {"query": 2024}
    rows[5] = {"query": f"qqqq {texts[5]}", "no_such_feature": 1}
    return rows


def embed_features(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Embed queries with the training code."""
    vocabularies = json.loads((folder / VOCABULARIES_FILE).read_text())
    schema = FeatureSchema.from_json(artifacts.read_meta(folder)["features"], vocabularies)
    network = load_network(FeatureDSSM, folder / WEIGHTS_FILE, CPU)
    queries = FeatureColumns(schema).encode_rows([row.get(WRAPPER, row) for row in rows])
    vectors: list[Any] = embed(network.query, queries).tolist()
    return vectors


def embed_texts(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """Embed queries with the training code."""
    network = load_network(TextDSSM, folder / WEIGHTS_FILE, CPU)
    queries = TextColumn("query").encode(_frame(rows).fillna("").astype(str))
    vectors: list[Any] = embed(network.query, queries).tolist()
    return vectors


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row.get(WRAPPER, row) for row in rows])


FEATURES = Example(
    model="dssm",
    version="v1",
    write_data=write_features,
    arguments=["--epochs", "6", "--batch-size", "64", "--max-docs", "200"],
    rows=feature_rows(),
    offline=embed_features,
    reaches={"auc": 0.9},  # the oracle has .95
)
TEXTS = replace(
    FEATURES,
    version="text",
    write_data=write_texts,
    arguments=["--text", "--epochs", "6", "--batch-size", "128", "--lr", "1e-2"],
    rows=text_rows(),
    offline=embed_texts,
    reaches={"hr_at_10": 0.4},  # the oracle has .89, popularity .14
)
EXAMPLES = [FEATURES, TEXTS]
