"""The reference of `bench.serving`: what a good team would write without TorchServe.

uvicorn bench.fastapi_service:create_app --factory --workers 2

It is as fast as FastAPI allows: orjson on the raw body, no pydantic, scoring in process with one
thread. It fills gaps and computes cross features as our handlers do, but skips what costs them
time: validation, counters, and an answer other than 500 to a bad request.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
import xgboost as xgb
from fastapi import FastAPI, Request, Response

from handlers.models.deepfm import DeepFM
from handlers.models.dssm import FeatureDSSM
from handlers.models.graph_recall import Neighbours
from handlers.models.weights import load_network, traced

Matrix = npt.NDArray[np.float32]

# Environment variable: a folder with the unpacked archive of each model in a folder of its name.
MODELS_VARIABLE = "RECMAR_BENCH_MODELS"


class Features:
    """Encodes the rows of a request as the input matrix of a model.

    Args:
        meta: Content of the model's meta file, with numeric features only.
    """

    def __init__(self, meta: dict[str, Any]) -> None:
        features = meta["features"]
        self._names = [feature["name"] for feature in features]
        self._default = np.array([feature["default"] for feature in features], dtype=np.float32)
        self._crosses = [
            (i, *(self._names.index(factor) for factor in feature["product_of"]))
            for i, feature in enumerate(features)
            if feature["product_of"]
        ]

    def matrix(self, rows: list[dict[str, float]]) -> Matrix:
        """Return the matrix, float32 [B, F], with gaps filled and missing crosses computed."""
        names = self._names
        x = np.array([[row.get(name) for name in names] for row in rows], dtype=np.float32)
        missing = np.isnan(x)
        if missing.any():
            x = np.where(missing, self._default, x)
            for cross, left, right in self._crosses:
                x[:, cross] = np.where(missing[:, cross], x[:, left] * x[:, right], x[:, cross])
        return x


def load_xgb(folder: Path) -> Callable[[Matrix], Any]:
    """Return a function that scores a matrix with the booster."""
    booster = xgb.Booster({"nthread": 1})
    booster.load_model(folder / "xgb_model.json")
    return lambda x: booster.inplace_predict(x, validate_features=False)


def load_deepfm(folder: Path) -> Callable[[Matrix], Any]:
    """Return a function that scores a matrix with the network."""
    network = load_network(DeepFM, folder / "deepfm_model.pt", torch.device("cpu"))
    example = torch.zeros(2, len(network.config["cardinalities"]))
    click_probability = traced(lambda matrix: network(matrix).sigmoid(), example)

    @torch.inference_mode()
    def score(x: Matrix) -> Any:
        return click_probability(torch.from_numpy(x)).numpy()

    return score


def load_dssm(folder: Path) -> Callable[[Matrix], Any]:
    """Return a function that embeds a matrix of query features."""
    network = load_network(FeatureDSSM, folder / "dssm_model.pt", torch.device("cpu"))
    example = torch.zeros(2, len(network.config["query_cardinalities"]))
    query = traced(network.query, example)

    @torch.inference_mode()
    def embed(x: Matrix) -> Any:
        return query(torch.from_numpy(x)).numpy()

    return embed


def load_graph(folder: Path) -> Callable[[str, int], dict[str, Any]]:
    """Return a function that finds the nodes nearest to a user."""
    ids = json.loads((folder / "vocabularies.json").read_text())["user_id"]
    nodes = {node_id: node for node, node_id in enumerate(ids)}
    neighbours = Neighbours.load(folder)

    def recall(user_id: str, top_k: int) -> dict[str, Any]:
        if user_id not in nodes:
            return {"item_ids": [], "scores": []}
        [(found, scores)] = neighbours.nearest(np.array([nodes[user_id]]), [top_k])
        return {"item_ids": [ids[node] for node in found], "scores": scores}

    return recall


def read_features(folder: Path) -> Features:
    """Read the features of a model."""
    return Features(json.loads(next(folder.glob("*_meta.json")).read_text()))


def json_response(content: Any) -> Response:
    """Return content, which may hold arrays, as JSON."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


def create_app() -> FastAPI:
    """Load the models and return the app."""
    torch.set_num_threads(1)
    models = Path(os.environ[MODELS_VARIABLE])
    score = {"xgb": load_xgb(models / "xgb"), "deepfm": load_deepfm(models / "deepfm")}
    features = {model: read_features(models / model) for model in score}
    embed, query_features = load_dssm(models / "dssm"), read_features(models / "dssm")
    nearest = load_graph(models / "graph_recall")
    app = FastAPI(openapi_url=None)

    @app.post("/predictions/{model}")
    async def predict(model: str, request: Request) -> Response:
        # On the event loop: a thread pool would cost more than a prediction.
        rows = orjson.loads(await request.body())["data"]
        return json_response({"predictions": score[model](features[model].matrix(rows))})

    @app.post("/query_embedding")
    async def query_embedding(request: Request) -> Response:
        query = orjson.loads(await request.body())["query_features"]
        return json_response({"query_embedding": embed(query_features.matrix([query]))[0]})

    @app.post("/recall")
    async def recall(request: Request) -> Response:
        body = orjson.loads(await request.body())
        return json_response(nearest(body["user_id"], min(max(body.get("top_k", 20), 1), 500)))

    gc.freeze()  # as the sidecar does
    return app
