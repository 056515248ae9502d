"""Rows with wrapped features and other fields, for a model that has a history of objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import orjson
import pytest

from handlers.counts import FeatureCounts
from handlers.decoding import RequestDecoder
from handlers.errors import RequestError
from handlers.feature import Feature
from handlers.histories import ItemHistories
from handlers.schema import FeatureSchema
from handlers.values import Token
from handlers.wrapped_rows import WrappedRowsHandler


class ActionsHandler(WrappedRowsHandler):
    """A model of users by their age, country and actions."""

    features_key: ClassVar[str] = "user_features"

    def load_model(self, model_dir: Path) -> None:
        """Set the schema; there is no model to load."""
        self.schema = FeatureSchema([Feature("age"), Feature("country", kind="category")])
        self.feature_names = (*self.schema.names, "actions")

    def other_fields(self, forbid_unknown: bool) -> Mapping[str, Any]:
        """The actions, a list of objects."""
        action = msgspec.defstruct(
            "Action", [("item_id", Token), ("type", str)], forbid_unknown_fields=forbid_unknown
        )
        return {"actions": list[action]}  # type: ignore[valid-type]

    @property
    def known_keys(self) -> Iterable[str]:
        """The keys of a row and of an action."""
        return (*super().known_keys, "item_id", "type")

    def predict(self, rows: list[Any]) -> list[Any]:
        """Return the values of each row."""
        actions = self.other_values(rows, "actions")
        return [
            [*values, [(action.item_id, action.type) for action in history or []]]
            for values, history in zip(self.feature_values(rows), actions, strict=True)
        ]


FEATURES: dict[str, Any] = {"age": 30, "country": "fr"}
ACTIONS: list[dict[str, Any]] = [{"item_id": "a", "type": "like"}, {"item_id": 7, "type": "reply"}]


@pytest.fixture
def handler() -> ActionsHandler:
    handler = ActionsHandler()
    handler.load_model(Path())
    handler.decoder = RequestDecoder(
        handler.row_type, handler.feature_names, handler.known_keys, max_rows=10
    )
    return handler


def decode(handler: ActionsHandler, *rows: Any) -> list[Any]:
    return handler.decoder.decode(orjson.dumps({"data": rows}))


def test_every_form_of_a_row_gives_its_values(handler: ActionsHandler) -> None:
    rows = [
        {"user_features": FEATURES, "actions": ACTIONS},
        {**FEATURES, "actions": ACTIONS},
        {"user_features": FEATURES},
        {**FEATURES, "actions": None},
        [30, "fr"],
    ]
    history = [("a", "like"), (7, "reply")]
    with_actions, without = [30, "fr", history], [30, "fr", []]
    expected = [with_actions, with_actions, without, without, without]
    assert handler.predict(decode(handler, *rows)) == expected
    assert not handler.decoder.unknown


def test_unknown_keys_are_counted_at_every_depth(handler: ActionsHandler) -> None:
    action = {**ACTIONS[0], "x": 1}
    row = {"user_features": {**FEATURES, "y": 1}, "actions": [action, action], "z": 1}
    assert handler.predict(decode(handler, row)) == [[30, "fr", [("a", "like")] * 2]]
    assert handler.decoder.unknown == {"x": 2, "y": 1, "z": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_features": {"age": "x"}}, 'data[0].user_features.age: expected a number, got "x"'),
        ({"user_features": [30]}, "data[0].user_features: expected an object, got [30]"),
        ({"actions": {}}, "data[0].actions: expected a list, got {}"),
        ({"actions": [5]}, "data[0].actions[0]: expected an object, got 5"),
    ],
)
def test_message_names_the_place_in_the_row(
    handler: ActionsHandler, row: Any, message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        decode(handler, row)
    assert str(refusal.value) == message


def test_history_is_padded_on_the_left_and_cut_to_its_end() -> None:
    histories = ItemHistories(["a", "7"], max_history=3)
    counts = FeatureCounts.zeros(2)
    padded = histories.padded([["a", None, 7.0], [], ["a", "b", "7", "7", "c"]], counts)
    assert padded.tolist() == [[0, 2, 3], [0, 0, 0], [3, 3, 1]]
    assert counts.missing.tolist() == [0, 1]
    assert counts.out_of_vocabulary.tolist() == [0, 1]


def test_empty_histories_give_one_column_of_padding() -> None:
    padded = ItemHistories(["a"], max_history=3).padded([[], []], FeatureCounts.zeros(1))
    np.testing.assert_array_equal(padded, [[0], [0]])
