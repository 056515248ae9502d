"""Translation between the sidecar's requests and the rows and predictions of the models.

It knows no transport. A request becomes rows by the functions ``*_rows``; the predictions for them
become a response by `Translation.response`; `as_sent` renames the rows in a model's message.
Values may be anything that orjson writes, such as the text of a JSON value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handlers.errors import RequestError
from handlers.request_rows import (
    DEFAULT_TOP_K,
    HISTORY_KEY,
    MAX_TOP_K,
    QUERY_FEATURES_KEY,
    USER_FEATURES_KEY,
)

# How a message of the model begins, and how it begins for the caller; the first that fits counts.
Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Translation:
    """The translation of one route.

    Attributes:
        model: Model behind the route.
        response: Convert the model's predictions to the response.
        request: Convert a row of the model to a request, the reverse of ``*_rows``.
        names: How a message of the model names the row, and how the caller did.
    """

    model: str
    response: Callable[[list[Any]], dict[str, Any]]
    request: Callable[[Any], dict[str, Any]]
    names: Names


def query_rows(query_features: Any) -> list[Any]:
    """Convert a request of /query_embedding."""
    return [{QUERY_FEATURES_KEY: query_features}]


def user_rows(user_features: Any, history_item_ids: Any) -> list[Any]:
    """Convert a request of /user_embedding; the history may be None."""
    history = {} if history_item_ids is None else {HISTORY_KEY: history_item_ids}
    return [{USER_FEATURES_KEY: user_features, **history}]


def item_rows(item_features: Any) -> list[Any]:
    """Convert a request of /item_embedding."""
    return [item_features]


def recall_rows(user_id: Any, top_k: int | None) -> list[Any]:
    """Convert a request of /recall; clamp top_k."""
    wanted = DEFAULT_TOP_K if top_k is None else top_k
    return [{"user_id": user_id, "top_k": min(max(wanted, 1), MAX_TOP_K)}]


def predict_rows(features_list: Any, data: Any) -> tuple[Any, Names]:
    """Convert a request of /predict.

    Returns:
        The rows, and the names of the rows as in `Translation`.

    Raises:
        RequestError: If it has no rows.
    """
    if features_list is not None:
        return features_list, (("data", "features_list"),)
    if data is not None:
        return data, ()
    raise RequestError(400, "features_list: expected it (or data) in the body, got neither")


def as_sent(message: str, names: Names) -> str:
    """Rename the row at the start of a model's message as the caller named it."""
    for of_model, of_caller in names:
        if message.startswith(of_model):
            return of_caller + message.removeprefix(of_model)
    return message


def _recalled(predictions: list[Any]) -> dict[str, Any]:
    [recalled] = predictions
    return {"item_ids": recalled["item_ids"], "scores": recalled["scores"]}


QUERY_EMBEDDING = Translation(
    model="dssm",
    response=lambda predictions: {"query_embedding": predictions},
    request=lambda row: row if QUERY_FEATURES_KEY in row else {QUERY_FEATURES_KEY: row},
    names=(("data[0].", ""), ("data[0]:", "query_features:")),
)
USER_EMBEDDING = Translation(
    model="youtube_dnn",
    response=lambda predictions: {"user_embedding": predictions},
    request=lambda row: row if USER_FEATURES_KEY in row else {USER_FEATURES_KEY: row},
    names=(("data[0].", ""), ("data[0]:", "user_features:")),
)
ITEM_EMBEDDING = Translation(
    model="item_tower",
    response=lambda predictions: {"item_embedding": predictions},
    request=lambda row: {"item_features": row},
    names=(("data[0]", "item_features"),),
)
RECALL = Translation(
    model="graph_recall",
    response=_recalled,
    request=lambda row: row,
    names=(("data[0].", ""),),
)
PREDICT = Translation(  # the older protocol
    model="xgb",
    response=lambda predictions: {"scores": predictions, "predictions": predictions},
    request=lambda row: {"features_list": [row]},
    names=(("data", "features_list"),),
)

TRANSLATIONS = {
    "/query_embedding": QUERY_EMBEDDING,
    "/user_embedding": USER_EMBEDDING,
    "/item_embedding": ITEM_EMBEDDING,
    "/recall": RECALL,
    "/predict": PREDICT,
}
# The model behind each route.
ROUTES = {route: translation.model for route, translation in TRANSLATIONS.items()}
