"""The bodies of the routes.

Features pass unchecked: their schema travels in the model's archive, and the model checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from handlers.body_text import shown, value_at
from handlers.request_rows import DEFAULT_TOP_K, MAX_TOP_K
from handlers.values import Id
from serving.rollout import Rollout

Features = dict[str, Any]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True)  # reject "5" and true as numbers


class QueryRequest(_Body):
    """A query to embed."""

    query_features: Features = Field(examples=[{"user_age": 30, "user_gender": 1}])


class UserRequest(_Body):
    """A user to embed."""

    user_features: Features = Field(examples=[{"user_age": 30, "user_gender": 1}])
    history_item_ids: list[Id | None] | None = Field(
        default=None, description="Oldest first.", examples=[["item_1", "item_2"]]
    )


class ItemRequest(_Body):
    """An item to embed."""

    item_features: Features = Field(
        examples=[{"item_ctr": 0.1, "item_cvr": 0.02, "item_price": 9.9}]
    )


class RecallRequest(_Body):
    """A user to recall the nearest items of."""

    user_id: Id = Field(examples=["user_1"])
    top_k: int | None = Field(
        default=None, description=f"{DEFAULT_TOP_K} when absent; clamped to 1..{MAX_TOP_K}."
    )


class PredictRequest(_Body):
    """Rows to score, under either name."""

    features_list: list[Any] | None = Field(default=None, examples=[[{"item_ctr": 0.1}]])
    data: list[Any] | None = Field(default=None, description="Another name of features_list.")


class QueryEmbedding(BaseModel):
    """The query's vector."""

    query_embedding: list[float]


class UserEmbedding(BaseModel):
    """The user's vector."""

    user_embedding: list[float]


class ItemEmbedding(BaseModel):
    """The item's vector."""

    item_embedding: list[float]


class Recall(BaseModel):
    """The nearest items, best first; empty for an unknown user."""

    item_ids: list[str]
    scores: list[float]


class Predictions(BaseModel):
    """One score per row, in order, under both names."""

    scores: list[float]
    predictions: list[float]


class Reload(BaseModel):
    """The versions before and after the reload, by model."""

    models: dict[str, Rollout]


class Problem(BaseModel):
    """The reason of a failure."""

    detail: str


_ID = {"string_type", "int_type", "float_type"}  # the errors of an `Id`
_WORDS = {
    "dict_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "a list",
    "int_type": "an integer",
}
_CONTAINERS: dict[Any, str] = {dict: "an object", list: "a list"}  # may be too deep to be written


def explain(errors: Sequence[Any], body: bytes) -> str:
    """Describe the first error of a body: where it is, what was expected and what came.

    Args:
        errors: Errors as pydantic and FastAPI list them, at least one. Each member of a union
            that does not match has its own.
        body: The body as it came.
    """
    first = errors[0]
    kind, path = first["type"], _path(first["loc"])
    if kind == "missing":
        return f"{path}: expected {'an object' if path == 'body' else 'it in the body'}, got none"
    got = first["input"]
    if isinstance(got, bytes):  # FastAPI parses the body only if its type is JSON
        return "body: expected JSON, got another type; send Content-Type: application/json"
    here = [error for error in errors if _path(error["loc"]) == path]
    if {error["type"] for error in here} == _ID:
        expected = "a string or a number"
    else:
        expected = " or ".join(_WORDS.get(error["type"], error["msg"]) for error in here)
    given = _CONTAINERS.get(type(got)) or shown(value_at(body, "" if path == "body" else path))
    return f"{path}: expected {expected}, got {given}"


def _path(location: Sequence[str | int]) -> str:
    """Convert ``("body", "history_item_ids", 3, "str")`` to ``history_item_ids[3]``."""
    name = location[1] if len(location) > 1 else "body"
    indices = "".join(f"[{part}]" for part in location[2:] if isinstance(part, int))
    return f"{name}{indices}"
