"""The routes that answer with a model's predictions.

The type of ``body`` checks and describes it; the model gets the values of ``sent``.
"""

from __future__ import annotations

from typing import Any

from fastapi import Response

from serving.client import TorchServeError
from sidecar import translate
from sidecar.http import bodies
from sidecar.http.json_route import OrjsonResponse, Sent
from sidecar.http.state import Shared, State, new_router
from sidecar.translate import Translation

router = new_router("predictions")


@router.post("/query_embedding", response_model=bodies.QueryEmbedding)
async def query_embedding(body: bodies.QueryRequest, sent: Sent, shared: Shared) -> Response:
    """Embed a query with dssm."""
    route = translate.QUERY_EMBEDDING
    return await _answer(shared, route, translate.query_rows(sent["query_features"]), route.names)


@router.post("/user_embedding", response_model=bodies.UserEmbedding)
async def user_embedding(body: bodies.UserRequest, sent: Sent, shared: Shared) -> Response:
    """Embed a user and the user's history with youtube_dnn."""
    route = translate.USER_EMBEDDING
    rows = translate.user_rows(sent["user_features"], sent.get("history_item_ids"))
    return await _answer(shared, route, rows, route.names)


@router.post("/item_embedding", response_model=bodies.ItemEmbedding)
async def item_embedding(body: bodies.ItemRequest, sent: Sent, shared: Shared) -> Response:
    """Embed an item with item_tower."""
    route = translate.ITEM_EMBEDDING
    return await _answer(shared, route, translate.item_rows(sent["item_features"]), route.names)


@router.post("/recall", response_model=bodies.Recall)
async def recall(body: bodies.RecallRequest, sent: Sent, shared: Shared) -> Response:
    """Recall the items nearest to a user with graph_recall."""
    route = translate.RECALL
    rows = translate.recall_rows(sent["user_id"], body.top_k)
    return await _answer(shared, route, rows, route.names)


@router.post("/predict", response_model=bodies.Predictions)
async def predict(body: bodies.PredictRequest, sent: Sent, shared: Shared) -> Response:
    """Score rows with xgb: the older protocol."""
    rows, names = translate.predict_rows(sent.get("features_list"), sent.get("data"))
    return await _answer(shared, translate.PREDICT, rows, names)


async def _answer(shared: State, route: Translation, rows: Any, names: translate.Names) -> Response:
    """Ask the model of a route; see `Translation` for the names."""
    try:
        predictions = await shared.torchserve.predict(route.model, rows)
    except TorchServeError as error:
        message = translate.as_sent(str(error), names)
        raise TorchServeError(error.status, message) from error
    return OrjsonResponse(route.response(predictions))
