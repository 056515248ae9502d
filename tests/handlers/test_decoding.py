"""For any request body, the response has status 200, 400 or 413 and JSON that Go can decode."""

from __future__ import annotations

import gzip
import json
import math
import types
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.base import RecHandler
from handlers.counts import FeatureCounts
from handlers.decoding import RequestDecoder
from handlers.errors import RequestError, RowError
from handlers.feature import Feature
from handlers.schema import FeatureSchema
from handlers.telemetry import MAX_UNKNOWN_LABELS, OTHER, Telemetry
from serving.testing import numbers
from tests.examples import Example, load_handler, module
from tests.handlers.test_wrapped_rows import ActionsHandler

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
        "data[5000].user_id: expected an id, got 7.2e+18: a float of 2^53 or more has lost digits; "
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
        (
            '[{"age": false}]',
            "data[0].age: expected a number, got false; send 1 for true, 0 for false",
        ),
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
        (
            '[{"age": true}]',
            "data[0].age: expected a number, got true; send 1 for true, 0 for false",
        ),
        (
            "[[true, 2, 3]]",
            "data[0].age: expected a number, got true; send 1 for true, 0 for false",
        ),
        ('[{"age": [1.50, 1e3]}]', "data[0].age: expected a number, got [1.50, 1e3]"),
        (
            '[{"user_id": [7.23e18, 12345678901234567890123, true, {"a": null}]}]',
            "data[0].user_id: expected a string or a number, got "
            '[7.23e18, 12345678901234567890123, true, {"a": null}]',
        ),
        (
            f'[{{"user_id": -{"9" * 5_000}}}]',
            f"data[0].user_id: expected an integer of at most 4300 digits, got -{'9' * 56}...",
        ),
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


VALUE = str | int | float | bool
MULTI = VALUE | list[VALUE | None] | None


@pytest.mark.parametrize(
    ("value_type", "data", "message"),
    [
        (VALUE | None, '[{"f": []}]', "data[0].f: expected a string or a number, got []"),
        (VALUE, '[{"f": null}]', "data[0].f: expected a string or a number, got null"),
        (MULTI, '{"f": {}}', "data.f: expected a list, a string or a number, got {}"),
        (MULTI, '[{"f": [[]]}]', "data[0].f[0]: expected a string or a number, got []"),
        (MULTI, "[[{}]]", "data[0].f: expected a list, a string or a number, got {}"),
        (MULTI, "[[[1, {}]]]", "data[0].f[1]: expected a string or a number, got {}"),
        (list[float | None] | None, '[{"f": 5}]', "data[0].f: expected a list, got 5"),
    ],
)
def test_every_type_of_a_feature_has_a_name(value_type: Any, data: str, message: str) -> None:
    def row_type(forbid_unknown: bool) -> Any:
        row = msgspec.defstruct("Row", [("f", value_type)], forbid_unknown_fields=forbid_unknown)
        return row | types.GenericAlias(tuple, (value_type,))

    with pytest.raises(RequestError) as refusal:
        RequestDecoder(row_type, ["f"], ["f"], max_rows=3).decode(b'{"data": %b}' % data.encode())
    assert str(refusal.value) == message


TEXT = '{"data": [{"age": 1}]}'


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (gzip.compress(TEXT.encode(), mtime=0), "a gzip body; send it uncompressed"),
        (b"\x28\xb5\x2f\xfd\x00", "a zstd body; send it uncompressed"),
        *(
            (zlib.compress(TEXT.encode(), level), "a deflate body; send it uncompressed")
            for level in range(10)
        ),
        (TEXT.encode("utf-8-sig"), "UTF-8 with a byte order mark; send it without the mark"),
        *((TEXT.encode(f"utf-16{end}"), "UTF-16; send UTF-8") for end in ("", "-le", "-be")),
        *((TEXT.encode(f"utf-32{end}"), "UTF-32; send UTF-8") for end in ("", "-le", "-be")),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16; send UTF-8"),
        (b"\x00\x00\xfe\xff" + TEXT.encode("utf-32-be"), "UTF-32; send UTF-8"),
        (TEXT.encode() + b"\xe9", "bytes that are not UTF-8 (0xe9 at position 22); send UTF-8"),
    ],
)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_other_encoding_is_named_with_what_to_send(
    decoder: RequestDecoder, body: bytes, found: str, kind: type
) -> None:
    with pytest.raises(RequestError) as refusal:
        decoder.decode(kind(body))
    expected = 'body: expected JSON like {"data": [{...}, ...]}, got ' + found
    assert str(refusal.value).startswith(expected)


@pytest.mark.parametrize(
    ("data", "row", "place"),
    [
        ('[{}, {"age": 1.50}]', 1, "data[1].age"),
        ('{"age": 1.50}', 0, "data.age"),
        ('[[1.50, 2, "x"]]', 0, "data[0].age"),
        ('[{"user_features": {"age": 1.50}}]', 0, "data[0].user_features.age"),
        ('[{"user_features": {"age": 1.50}, "age": 2}]', 0, "data[0].user_features.age"),
        ('[{"user_features": {}, "age": [3, null, {"x": 1.50}]}]', 0, "data[0].age"),
    ],
)
def test_error_of_a_row_has_the_place_and_the_number_of_the_body(
    decoder: RequestDecoder, data: str, row: int, place: str
) -> None:
    error = RowError(row, "age", "expected better, got 1.5: no")
    body = b'{"data": %b}' % data.encode()
    assert decoder.explain_row(body, error) == f"{place}: expected better, got 1.50: no"
    parsed = {"data": json.loads(data)}  # by a TorchServe that decodes the body
    assert decoder.explain_row(parsed, error) == f"{place}: expected better, got 1.5: no"


def test_error_of_a_row_next_to_deep_nesting_has_its_place(decoder: RequestDecoder) -> None:
    body = b'{"data": [{"age": 1, "x": %b}]}' % (b"[" * 5_000 + b"]" * 5_000)
    message = decoder.explain_row(body, RowError(0, "age", "expected better"))
    assert message == "data[0].age: expected better"


def test_more_rows_than_the_limit_are_refused(decoder: RequestDecoder) -> None:
    assert len(decoder.decode(b'{"data": [{}, {}, {}]}')) == 3
    with pytest.raises(RequestError, match="expected at most 3 rows, got 4; split them") as refusal:
        decoder.decode(b'{"data": [{}, {}, {}, {}]}')
    assert refusal.value.status == 413


def test_unknown_features_are_ignored_and_counted_by_name(decoder: RequestDecoder) -> None:
    rows = b'{"age": 1, "x": {"age": []}}, {"age": 2, "x": 1e999, "y": -%b}' % (b"9" * 5_000)
    body = b'{"data": [%b], "trace": "abc"}' % rows
    assert [row.f0 for row in decoder.decode(body)] == [1, 2]
    assert decoder.unknown == {"x": 2, "y": 1}


def test_unknown_feature_that_is_not_json_is_refused(decoder: RequestDecoder) -> None:
    for text in (b"01", b"NaN", b'"\x01"', b'"\\ud800"', b'"\xff"', b"[" * 5_000 + b"]" * 5_000):
        for first in (b"1", b"1e999"):
            with pytest.raises(RequestError, match="body: expected JSON like") as refusal:
                decoder.decode(b'{"data": {"age": 1, "x": [%b, %b]}}' % (first, text))
            assert refusal.value.status == 400


def decode_with(share: float, row: str) -> list[Any]:
    """Decode a row of features, bare or wrapped, with a limit of unknown keys."""
    handler = ActionsHandler()
    handler.load_model(Path())
    names, known = handler.feature_names, handler.known_keys
    decoder = RequestDecoder(handler.row_type, names, known, 3, share)
    return decoder.decode(b'{"data": [{}, %b]}' % row.encode())


@pytest.mark.parametrize(
    ("share", "row", "got"),
    [
        (1.0, '{"agee": 3}', "1 unknown of 1 keys: agee"),
        (1.0, '{"x": null, "y": {"age": 1}}', "2 unknown of 2 keys: x, y"),
        (1.0, '{"user_features": {"agee": 3, "x": 1}}', "2 unknown of 2 keys: agee, x"),
        (1.0, '{"user_features": {"agee": 3}, "x": 1}', "2 unknown of 2 keys: agee, x"),
        (
            0.5,
            '{"age": 3, "x": 1, "y": 2}',
            "2 unknown of 3 keys (max_unknown_share: 0.5): x, y",
        ),
        (
            0.5,
            '{"user_features": {"age": 3, "x": 1}, "y": 2}',
            "2 unknown of 3 keys (max_unknown_share: 0.5): x, y",
        ),
        (0, '{"age": 3, "x": 1}', "1 unknown of 2 keys (max_unknown_share: 0): x"),
    ],
)
def test_row_with_too_many_unknown_features_is_refused(share: float, row: str, got: str) -> None:
    with pytest.raises(RequestError) as refusal:
        decode_with(share, row)
    expected = f"data[1]: expected features of the model (age, country, actions), got {got}"
    assert (refusal.value.status, str(refusal.value)) == (400, expected)


@pytest.mark.parametrize(
    ("share", "row"),
    [
        (0, "{}"),
        (0, '{"user_features": {}}'),
        (0, '{"age": null}'),
        (0, '[1, "fr"]'),
        (0.5, '{"age": 3, "x": 1}'),
        (1.0, '{"user_features": {}, "x": 1}'),
        (1.0, '{"actions": [], "x": 1, "y": 1}'),
        (0, '{"actions": [{"item_id": "a", "type": "b", "x": 1, "y": 1}]}'),  # x is no feature
    ],
)
def test_row_with_few_unknown_features_is_served(share: float, row: str) -> None:
    assert len(decode_with(share, row)) == 2


def test_long_lists_of_names_are_clipped() -> None:
    schema = FeatureSchema([Feature(f"feature_{i}") for i in range(1_000)])
    decoder = RequestDecoder(schema.row_type, schema.names, schema.names, max_rows=3)
    row = json.dumps({f"unknown_{i}": i for i in range(1_000)})
    with pytest.raises(RequestError) as refusal:
        decoder.decode(b'{"data": %b}' % row.encode())
    assert len(str(refusal.value)) < 1000


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


@pytest.mark.parametrize(
    ("name", "label"), [("", "_"), ("a,b:c|d#e f\n", "a_b_c_d_e_f_"), ("x" * 100, "x" * 64)]
)
def test_label_of_an_unknown_name_survives_torchserves_parser(name: str, label: str) -> None:
    cache: Any = MagicMock()
    telemetry = Telemetry(cache, "m", "1", [], FeatureCounts.zeros(0), Counter({name: 1}))
    telemetry.observe(1.0, 1, Counter({200: 1}))
    telemetry.flush()
    emitted = cache.add_metric_to_cache.return_value.add_or_update.call_args_list
    assert ["m", "1", label] in [call.args[1] for call in emitted]


def test_message_with_a_lone_surrogate_can_be_decoded() -> None:
    body = RequestError(400, "got \ud800").to_json()
    assert json.loads(body)["message"] == "got ?"
