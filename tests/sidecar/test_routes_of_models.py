"""The sidecar's routes over the real models."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from serving.testing import Server
from sidecar.translate import ROUTES
from tests.examples import model_names, module


def body_of(route: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return the request that a caller of the sidecar sends for a row of the model."""
    match route:
        case "/query_embedding":
            return row if "query_features" in row else {"query_features": row}
        case "/user_embedding":
            return row if "user_features" in row else {"user_features": row}
        case "/item_embedding":
            return {"item_features": row}
        case "/predict":
            return {"features_list": [row]}
    return row


def answer_of(route: str, predictions: list[Any]) -> dict[str, Any]:
    """Return the response that the caller gets."""
    match route:
        case "/recall":
            found: dict[str, Any] = predictions[0]
            return found
        case "/predict":
            return {"scores": predictions, "predictions": predictions}
    return {route.removeprefix("/"): predictions}


@pytest.mark.parametrize("route", [route for route in ROUTES if ROUTES[route] in model_names()])
def test_route_answers_as_the_model_behind_it(server: Server, route: str) -> None:
    row = module(ROUTES[route]).EXAMPLES[0].rows[0]
    url = f"{server.inference_url}/predictions/{ROUTES[route]}"
    predictions = requests.post(url, json={"data": [row]}, timeout=30).json()["predictions"]

    body = body_of(route, row)
    answer = requests.post(f"{server.sidecar_url}{route}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json() == answer_of(route, predictions)


def test_refused_feature_is_named_as_the_caller_wrote_it(server: Server) -> None:
    for name in ("features_list", "data"):
        body: dict[str, Any] = {name: [{}, {"user_age": "abc"}]}
        answer = requests.post(f"{server.sidecar_url}/predict", json=body, timeout=30)
        assert answer.status_code == 400
        assert answer.json() == {"detail": f'{name}[1].user_age: expected a number, got "abc"'}


def test_too_many_rows_get_413(server: Server) -> None:
    body: dict[str, Any] = {"features_list": [{}] * 10_001}
    answer = requests.post(f"{server.sidecar_url}/predict", json=body, timeout=30)
    assert answer.status_code == 413
    assert answer.json()["detail"].startswith("features_list: expected at most 10000 rows")
