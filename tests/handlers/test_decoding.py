"""For any request body, the response has status 200, 400 or 413 and JSON that Go can decode."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.base import RecHandler
from handlers.counts import FeatureCounts
from handlers.decoding import RequestDecoder
from handlers.errors import RequestError
from handlers.schema import Feature, FeatureSchema
from handlers.telemetry import MAX_UNKNOWN_LABELS, OTHER, Telemetry
from serving.testing import numbers
from tests.examples import Example, load_handler, module

SCHEMA = FeatureSchema(
    [
        Feature("age"),
        Feature("a.b [0] `c`", default=None),
        Feature("user_id", kind="category", vocabulary=("1", "anna")),
    ]
)
NAMES = ("item_ctr", "user_age", "cross_age_x_ctr", "user_id", "price (EUR)", "class", "other")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
number_texts = (
    st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.integers().map(str)
    | st.sampled_from(["1e999", "-1e999", "1e300", "1e-400", "-0", "NaN", "Infinity", "1.", "01"])
    | st.integers(0, 2000).map(lambda n: "9" * (n + 1))
)
cells = (
    number_texts
    | st.sampled_from(["null", "true", '""', '"12"', '"item_3"', '"\\ud800"', "[]", "{}", "[1]"])
    | json_values.map(json.dumps)
)
keys = st.sampled_from(NAMES).map(json.dumps) | st.text(max_size=3).map(json.dumps)
objects = st.lists(st.tuples(keys, cells), max_size=8).map(
    lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items) + "}"
)
lists = st.lists(cells, min_size=5, max_size=7) | st.lists(cells, max_size=9)
vectors = lists.map(lambda values: "[" + ",".join(values) + "]")
rows = objects | vectors | cells
data = st.lists(rows, max_size=4).map(lambda items: "[" + ",".join(items) + "]") | rows
near_valid = data.map(lambda text: b'{"data": %b}' % text.encode())
bodies = st.binary() | json_values.map(lambda value: json.dumps(value).encode()) | near_valid


@pytest.fixture(
    scope="module",
    params=[e for model in ("xgb", "mmoe") for e in module(model).EXAMPLES],
    ids=str,
)
def handler(
    request: pytest.FixtureRequest, artifact_folder: Callable[[Example], Any]
) -> RecHandler:
    example: Example = request.param
    return load_handler(example.model, artifact_folder(example))


@settings(max_examples=300, deadline=None)
@given(batch=st.lists(bodies, min_size=1, max_size=4))
def test_no_input_gets_a_5xx_or_a_nan(handler: RecHandler, batch: list[bytes]) -> None:
    responses, n_rows = handler.answer(list(batch))
    assert len(responses) == len(batch)
    served = 0
    for status, body in responses:
        content = json.loads(body, parse_constant=pytest.fail)
        if status == 200:
            served += len(content["predictions"])
            values = [value for _, value in numbers(content["predictions"])]
            assert all(isinstance(v, float) and math.isfinite(v) for v in values)
        else:
            assert status in (400, 413)
            assert content["code"] == status
            assert 0 < len(content["message"]) < 1000
    assert served == n_rows


@pytest.fixture(scope="module")
def handler_of_ids(artifact_folder: Callable[[Example], Any]) -> RecHandler:
    example = module("xgb").EXAMPLES[1]
    return load_handler(example.model, artifact_folder(example))


def test_an_id_that_lost_digits_is_refused_and_its_batch_mates_are_served(
    handler_of_ids: RecHandler,
) -> None:
    rows = [[{"user_id": 7234567890123456789}], [{"user_id": 1}] * 5000 + [{"user_id": 7.2e18}]]
    bodies = [json.dumps({"data": data}).encode() for data in [*rows, [{"user_id": "1"}]]]
    failures: list[Exception] = []
    responses, n_rows = handler_of_ids.answer(bodies, lambda _, error: failures.append(error))
    assert [status for status, _ in responses] == [200, 400, 200]
    assert json.loads(responses[1][1])["message"] == (
        "data[5000].user_id: expected an id, got 7.2e+18: a float beyond 2^53 has lost digits; "
        "send it as an integer or as text"
    )
    assert (n_rows, failures) == (2, [])


@pytest.mark.parametrize("sent", ["true", '"True"', "1", "1.0", '" 1"'])
def test_true_is_the_category_1(decoder: RequestDecoder, sent: str) -> None:
    rows = decoder.decode(b'{"data": [{"user_id": %b}]}' % sent.encode())
    assert SCHEMA.matrix(SCHEMA.raw_matrix(rows))[0, 2] == 2


@pytest.fixture
def decoder() -> RequestDecoder:
    return RequestDecoder(SCHEMA.row_type, SCHEMA.names, SCHEMA.names, max_rows=3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('[{}, {"age": "abc"}]', 'data[1].age: expected a number, got "abc"'),
        ('{"age": "abc"}', 'data.age: expected a number, got "abc"'),
        ('[{"age": false}]', "data[0].age: expected a number, got false"),
        ('[{"age": 1e400}]', "data[0].age: expected a number within float64, got 1e400"),
        (
            '[{"user_id": {}}]',
            "data[0].user_id: expected a string or a number, got {}",
        ),
        (
            '[{"a.b [0] `c`": []}]',
            "data[0].a.b [0] `c`: expected a number, got []",
        ),
        (
            '[[1, 2, "x"], [1, null]]',
            "data[1]: expected 3 values (age, a.b [0] `c`, user_id), got 2",
        ),
        ('[["1", 2, "x"]]', 'data[0].age: expected a number, got "1"'),
        ("[[1, 2, [3]]]", "data[0].user_id: expected a string or a number, got [3]"),
        ("[3]", "data[0]: expected an object or an array, got 3"),
        ("[[]]", "data[0]: expected 3 values (age, a.b [0] `c`, user_id), got 0"),
        (
            f'[{{"age": "{"x" * 999}"}}]',
            f'data[0].age: expected a number, got "{"x" * 56}...',
        ),
    ],
)
def test_message_states_the_place_the_expected_and_the_given(
    decoder: RequestDecoder, data: str, message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        decoder.decode(b'{"data": %b}' % data.encode())
    assert (refusal.value.status, str(refusal.value)) == (400, message)


def test_more_rows_than_the_limit_are_refused(decoder: RequestDecoder) -> None:
    assert len(decoder.decode(b'{"data": [{}, {}, {}]}')) == 3
    with pytest.raises(RequestError, match="expected at most 3 rows, got 4; split them") as refusal:
        decoder.decode(b'{"data": [{}, {}, {}, {}]}')
    assert refusal.value.status == 413


def test_unknown_features_are_ignored_and_counted_by_name(decoder: RequestDecoder) -> None:
    body = b'{"data": [{"age": 1, "x": {"age": []}}, {"x": null, "y": 1}], "trace": "abc"}'
    assert [row.f0 for row in decoder.decode(body)] == [1, pytest.approx(math.nan, nan_ok=True)]
    assert decoder.unknown == {"x": 2, "y": 1}


def test_many_unknown_names_share_one_metric_label() -> None:
    cache: Any = MagicMock()
    unknown = Counter({f"x{i}": 1 for i in range(1_000)})
    telemetry = Telemetry(cache, "m", "1", [], FeatureCounts.zeros(0), unknown)
    telemetry.observe(1.0, 1, Counter({200: 1}))
    cache.add_metric_to_cache.return_value.add_or_update.reset_mock()
    telemetry.flush()
    emitted = cache.add_metric_to_cache.return_value.add_or_update.call_args_list
    by_name = {call.args[1][-1]: call.args[0] for call in emitted}
    assert by_name[OTHER] == 1_000 - MAX_UNKNOWN_LABELS
    assert len(emitted) < 100


def test_message_with_a_lone_surrogate_can_be_decoded() -> None:
    body = RequestError(400, "got \ud800").to_json()
    assert json.loads(body)["message"] == "got ?"
