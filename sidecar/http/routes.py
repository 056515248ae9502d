"""The routes that answer with a model's predictions."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from serving.client import TorchServeError
from sidecar import translate
from sidecar.http import bodies
from sidecar.http.orjson_route import OrjsonResponse
from sidecar.http.state import Shared, State, new_router
from sidecar.translate import Translation

router = new_router()


@router.post("/query_embedding", response_model=bodies.QueryEmbedding)
async def query_embedding(body: bodies.QueryRequest, shared: Shared) -> Response:
    """Embed a query with dssm."""
    route = translate.QUERY_EMBEDDING
    return await _answer(shared, route, translate.query_rows(body.query_features), route.names)


@router.post("/user_embedding", response_model=bodies.UserEmbedding)
async def user_embedding(body: bodies.UserRequest, shared: Shared) -> Response:
    """Embed a user and the user's history with youtube_dnn."""
    route = translate.USER_EMBEDDING
    rows = translate.user_rows(body.user_features, body.history_item_ids)
    return await _answer(shared, route, rows, route.names)


@router.post("/item_embedding", response_model=bodies.ItemEmbedding)
async def item_embedding(body: bodies.ItemRequest, shared: Shared) -> Response:
    """Embed an item with item_tower."""
    route = translate.ITEM_EMBEDDING
    return await _answer(shared, route, translate.item_rows(body.item_features), route.names)


@router.post("/recall", response_model=bodies.Recall)
async def recall(body: bodies.RecallRequest, shared: Shared) -> Response:
    """Recall the items nearest to a user with graph_recall."""
    route = translate.RECALL
    return await _answer(
        shared, route, translate.recall_rows(body.user_id, body.top_k), route.names
    )


@router.post("/predict", response_model=bodies.Predictions)
async def predict(body: bodies.PredictRequest, shared: Shared) -> Response:
    """Score rows with xgb: the older protocol."""
    rows, names = translate.predict_rows(body.features_list, body.data)
    return await _answer(shared, translate.PREDICT, rows, names)


async def _answer(
    shared: State, route: Translation, rows: list[Any], names: tuple[str, str]
) -> Response:
    """Ask the model of a route; see `Translation` for the names."""
    try:
        predictions = await shared.torchserve.predict(route.model, rows)
    except TorchServeError as error:
        message = translate.as_sent(str(error), names)
        raise TorchServeError(error.status, message) from error
    return OrjsonResponse(route.response(predictions))
