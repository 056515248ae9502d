"""The translation of the routes, without HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.errors import RequestError
from sidecar import translate


@pytest.mark.parametrize(
    ("route", "row", "request_body"),
    [
        ("/query_embedding", {"a": 1}, {"query_features": {"a": 1}}),
        ("/query_embedding", {"query_features": {"a": 1}}, {"query_features": {"a": 1}}),
        ("/user_embedding", {"a": 1}, {"user_features": {"a": 1}}),
        (
            "/user_embedding",
            {"user_features": {}, "history_item_ids": ["x"]},
            {"user_features": {}, "history_item_ids": ["x"]},
        ),
        ("/item_embedding", {"a": 1}, {"item_features": {"a": 1}}),
        ("/recall", {"user_id": "u", "top_k": 2}, {"user_id": "u", "top_k": 2}),
        ("/predict", {"a": 1}, {"features_list": [{"a": 1}]}),
    ],
)
def test_row_of_a_model_becomes_a_request_of_its_route(
    route: str, row: Any, request_body: Any
) -> None:
    assert translate.TRANSLATIONS[route].request(row) == request_body


@pytest.mark.parametrize(
    ("message", "names", "sent"),
    [
        ("data[0].a: expected", translate.QUERY_EMBEDDING.names, "a: expected"),
        ("data[0]: expected", translate.QUERY_EMBEDDING.names, "query_features: expected"),
        ("data[0].a: expected", translate.ITEM_EMBEDDING.names, "item_features.a: expected"),
        ("data[0]: expected", translate.ITEM_EMBEDDING.names, "item_features: expected"),
        (
            "data[3].a: expected",
            translate.predict_rows([], None)[1],
            "features_list[3].a: expected",
        ),
        ("data[3].a: expected", translate.predict_rows(None, [])[1], "data[3].a: expected"),
        ("dssm: not loaded", translate.QUERY_EMBEDDING.names, "dssm: not loaded"),
    ],
)
def test_message_names_the_row_as_the_caller_did(
    message: str, names: translate.Names, sent: str
) -> None:
    assert translate.as_sent(message, names) == sent


def test_request_without_rows_is_refused() -> None:
    with pytest.raises(RequestError, match="features_list: expected it"):
        translate.predict_rows(None, None)
