"""Lists, times and ages are the same in the columns of training and in the rows of requests."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.counts import FeatureCounts
from handlers.decoding import RequestDecoder
from handlers.errors import RequestError, RowError
from handlers.feature import FIRST_TOKEN_INDEX, MISSING_INDEX, OOV_INDEX, Feature
from handlers.schema import FeatureSchema, Matrix
from handlers.values import LostDigitsError, hashed_id, to_token
from training.data.feature_flags import readers_of
from training.data.features import fit_schema, to_matrix
from training.data.nested import json_cells

ZONE = "Europe/Berlin"
TAGS = ("196", "anna", "-1", "1.5", "007", "2026-11-25", "1")
SCHEMA = FeatureSchema(
    [
        Feature("tags", kind="multi", vocabulary=TAGS, max_length=3, separator="|"),
        Feature("hashed", kind="multi", hash_buckets=97, max_length=2, separator="|"),
        Feature("seen", kind="history", items="item", max_length=3, separator=","),
        Feature("item", kind="category", vocabulary=TAGS),
        Feature("viewed", kind="history", items="shop", max_length=2, separator=","),
        Feature("shop", kind="category", hash_buckets=1 << 20, hash_ids=True),
        Feature("at", kind="time", time_zone=ZONE),
        Feature("born", kind="age", time_zone=ZONE, event="at", default=None),
        Feature("price", default=None),
    ]
)

tokens = (
    st.sampled_from(
        ["196", "anna", "-1", "1.5", "007", "", " ", "nobody", "196.0", " 196", "1.96e2", "true"]
    )
    | st.sampled_from(["a|b", "196|anna", "|", "anna, 1", "2026-11-25 00:00", True, False])
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.sampled_from([196, 196.0, -1.0, 1.5, 7, 2**53 + 1, 7234567890123456789])
    | st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=5)
)
lists = st.lists(st.none() | tokens, max_size=6) | tokens
times = (
    st.integers(-(10**10) + 1, 10**10 - 1)
    | st.floats(-1e10, 1e10)
    | st.integers(10**8, 2 * 10**9).map(lambda s: s * 1000)
    | st.integers(10**8, 2 * 10**9).map(lambda s: s * 10**6)
    | st.integers(10**8, 2 * 10**9).map(lambda s: s * 10**9)
    | st.integers(0, 2 * 10**9).map(lambda s: f" {s}")
    | st.datetimes().map(lambda t: t.isoformat())
    | st.datetimes().map(lambda t: f"{t.isoformat(' ')}+08:00")
    | st.dates().map(lambda d: d.isoformat())
    | st.sampled_from(["", " ", "9999-12-31", "0001-01-01T00:00Z", "2026-03-29T02:30:00"])
)
rows = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "tags": st.none() | lists,
            "hashed": st.none() | lists,
            "seen": st.none() | lists,
            "item": st.none() | tokens,
            "viewed": st.none() | lists,
            "shop": st.none() | tokens,
            "at": st.none() | times,
            "born": st.none() | times,
            "price": st.none() | st.floats(-9, 9, width=32),
        },
    ),
    min_size=1,
    max_size=6,
)


def decode(schema: FeatureSchema, rows: list[Any]) -> list[Any]:
    """Decode rows as a handler decodes those of a request."""
    row_type: Any = list[schema.row_type(forbid_unknown=True)]  # type: ignore[misc]
    decoded: list[Any] = msgspec.json.decode(msgspec.json.encode(rows), type=row_type)
    return decoded


def served(schema: FeatureSchema, rows: list[Any], counts: FeatureCounts | None = None) -> Matrix:
    """Encode rows as a handler encodes those of a request."""
    return schema.matrix(schema.raw_matrix(decode(schema, rows), counts), counts)


def trained(schema: FeatureSchema, rows: list[dict[str, Any]]) -> Matrix:
    """Encode rows as training encodes those of a file of JSON lines."""
    readers = readers_of(schema.features)
    columns = {}
    for name in schema.names:
        cells = json_cells([row.get(name) for row in rows])
        if name in readers:
            read, wrong = readers[name](cells)
            assert wrong is None
            columns[name] = read.to_pandas() if isinstance(read, pa.Array) else read
        else:
            columns[name] = cells.cast(pa.float64()).to_pandas().astype(np.float32)
    return to_matrix(schema, pd.DataFrame(columns))


@settings(max_examples=150, deadline=None)
@given(rows=rows)
def test_rows_of_a_request_and_columns_of_a_file_give_the_same_matrix(
    rows: list[dict[str, Any]],
) -> None:
    matrix = served(SCHEMA, rows)
    np.testing.assert_array_equal(matrix, trained(SCHEMA, rows))
    assert not np.isinf(matrix).any()
    vectors: Any = [[row.get(name) for name in SCHEMA.names] for row in rows]
    np.testing.assert_array_equal(served(SCHEMA, vectors), matrix)
    for column, n in SCHEMA.category_columns.items():
        assert ((matrix[:, column] >= 0) & (matrix[:, column] < n)).all()


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.none() | st.lists(st.none() | tokens, max_size=6), min_size=1, max_size=6)
)
def test_a_list_is_its_known_tokens_cut_to_the_longest(values: list[list[Any] | None]) -> None:
    counts = FeatureCounts.zeros(len(SCHEMA.features))
    matrix = served(SCHEMA, [{"tags": value, "seen": value} for value in values], counts)
    n_cut = 0
    for row, value in zip(matrix, values, strict=True):
        for name, separator in (("tags", "|"), ("seen", ",")):
            parts = [
                part
                for token in value or []
                for part in (token.split(separator) if isinstance(token, str) else [token])
            ]
            found = [token for part in parts if (token := to_token(part)) is not None]
            kept = found[:3] if name == "tags" else found[-3:]
            n_cut += len(kept) < len(found)
            index = [TAGS.index(t) + FIRST_TOKEN_INDEX if t in TAGS else OOV_INDEX for t in kept]
            assert row[SCHEMA.columns[name]].tolist() == [*index, *[MISSING_INDEX] * 3][:3]
    assert counts.truncated.sum() == n_cut


features = st.one_of(
    st.builds(
        Feature,
        name=st.sampled_from("abc"),
        kind=st.just("multi"),
        vocabulary=st.lists(st.text(), unique=True, max_size=4).map(tuple),
        max_length=st.integers(1, 4),
        separator=st.sampled_from(["", "|"]),
        hash_ids=st.booleans(),
    ),
    st.builds(
        Feature,
        name=st.sampled_from("de"),
        kind=st.just("multi"),
        hash_buckets=st.integers(2, 9),
        max_length=st.integers(1, 4),
    ),
    st.builds(
        Feature,
        name=st.sampled_from("fg"),
        kind=st.just("history"),
        items=st.sampled_from(["item", "shop"]),
        max_length=st.integers(1, 4),
    ),
    st.builds(
        Feature,
        name=st.sampled_from("hi"),
        kind=st.just("age"),
        event=st.just("at"),
        default=st.sampled_from([None, 0.0]),
        train_range=st.none() | st.just((0.0, 9.0)),
        time_zone=st.sampled_from(["UTC", ZONE]),
    ),
)
COMMON = [feature for feature in SCHEMA.features if feature.name in ("item", "shop", "at")]


@settings(max_examples=100, deadline=None)
@given(features=st.lists(features, max_size=6, unique_by=lambda f: f.name))
def test_schema_survives_json_and_covers_its_columns(features: list[Feature]) -> None:
    schema = FeatureSchema([*features, *COMMON])
    text = json.dumps([schema.to_json(), schema.vocabularies()])
    again = FeatureSchema.from_json(*json.loads(text))
    assert again.features == schema.features
    assert again.cardinalities == schema.cardinalities
    widths = [1 if isinstance(entry, int) else entry[1] for entry in schema.cardinalities]
    assert sum(widths) == schema.n_columns == len(schema.column_features)
    spans = [(c.start, c.stop) for c in schema.columns.values()]
    assert [stop for _, stop in spans] == [*[start for start, _ in spans[1:]], schema.n_columns]


@pytest.mark.parametrize(
    "features",
    [
        [Feature("h", kind="history", items="item", max_length=2)],
        [Feature("h", kind="history", items="x", max_length=2), Feature("x")],
        [Feature("born", kind="age", event="at")],
        [Feature("born", kind="age", event="x"), Feature("x")],
    ],
)
def test_a_feature_without_the_one_that_it_names_is_refused(features: list[Feature]) -> None:
    with pytest.raises(ValueError, match=r"expected a feature|is not a (category|time)"):
        FeatureSchema(features)


@pytest.mark.parametrize("name", ["tags", "hashed", "seen", "viewed"])
@pytest.mark.parametrize("bad", [7.2e18, "7.2e+18", "9999999999999999.0"])
def test_an_id_in_a_list_that_lost_digits_is_refused_in_its_row(name: str, bad: Any) -> None:
    values: list[Any] = [["a", "b"], [], None, [1.0, bad], ["a"]]
    with pytest.raises(RowError, match=r"2\^53 or more has lost digits; send it") as error:
        served(SCHEMA, [{name: value} for value in values])
    assert (error.value.row, error.value.problem.split(":")[0]) == (3, f"expected an id, got {bad}")
    _, wrong = readers_of(SCHEMA.features)[name](json_cells(values))
    assert wrong is not None
    assert wrong.row == 3
    assert "a float of 2^53 or more has lost digits, like 1 of the" in wrong.problem


def test_a_float_that_equals_the_id_of_another_row_is_refused_all_the_same() -> None:
    with pytest.raises(RowError, match="expected an id") as error:
        served(SCHEMA, [{"tags": [2**60]}, {"tags": [2.0**60]}])
    assert error.value.row == 1


def test_missing_and_unknown_tokens_and_cut_lists_are_counted() -> None:
    counts = FeatureCounts.zeros(len(SCHEMA.features))
    served(
        SCHEMA,
        [
            {"tags": ["196", "x", None, "y", "z"], "hashed": "a|b|c", "seen": "x,y,z,anna"},
            {"tags": [], "hashed": [None], "seen": " , ", "viewed": [1, 2, 3], "at": 0},
            {"tags": "196", "born": 0},
        ],
        counts,
    )
    by_name = {
        kind: dict(zip(SCHEMA.names, getattr(counts, kind).tolist(), strict=True))
        for kind in counts.kinds()
    }
    assert by_name["truncated"] == dict.fromkeys(SCHEMA.names, 0) | {
        "tags": 1,
        "hashed": 1,
        "seen": 1,
        "viewed": 1,
    }
    assert by_name["out_of_vocabulary"] == dict.fromkeys(SCHEMA.names, 0) | {"tags": 2, "seen": 2}
    assert by_name["missing"] == {
        **{"tags": 1, "hashed": 2, "seen": 2, "item": 3, "viewed": 2, "shop": 3},
        **{"at": 2, "born": 3, "price": 3},
    }


@pytest.mark.parametrize(
    ("value", "hour", "weekday"),
    [
        ("2026-11-25T07:00:00Z", 8, 2),  # a Wednesday
        ("2026-11-25T15:30:00+08:00", 8, 2),
        ("2026-11-25 08:59", 8, 2),  # without an offset: in the zone
        ("2026-11-25", 0, 2),
        (1795590000, 8, 2),
        ("1795590000", 8, 2),
        (1795590000.75, 8, 2),
        (1795590000000, 8, 2),
        ("1795590000000", 8, 2),
        (1795590000000000, 8, 2),
        (1795590000000000000, 8, 2),
        ("2026-07-01T22:00:00Z", 0, 3),  # summer time, the next day
        ("2026-03-29T02:30:00", 3, 6),  # in the gap: an hour later
        ("2026-10-25T02:30:00", 2, 6),  # in the overlap
        ("2026-10-25T00:30:00Z", 2, 6),
        ("2026-10-25T01:30:00Z", 2, 6),
        ("9999-12-31T10:00:00Z", 11, 4),
        ("0001-01-01T10:00", 10, 0),
        (-1, 0, 3),
        (0, 1, 3),
    ],
)
def test_a_time_gives_its_hour_and_weekday_in_the_zone(value: Any, hour: int, weekday: int) -> None:
    [row] = served(SCHEMA, [{"at": value}])
    assert (row[SCHEMA.columns["at"]] - FIRST_TOKEN_INDEX).tolist() == [hour, weekday]


@pytest.mark.parametrize(
    ("at", "born", "days"),
    [
        ("2026-11-25", "2026-11-24", 1.0),
        ("2026-03-30", "2026-03-29", 23 / 24),  # an hour shorter
        (86400, 0, 1.0),
        (86400_000_000, 0, 1000.0),
        (0, 86400, 1 / 86400),  # not before the event: a second
        ("2026-11-25", "", math.nan),
        (None, "2026-11-24", math.nan),
        ("", 0, math.nan),
    ],
)
def test_an_age_is_the_days_until_the_event(at: Any, born: Any, days: float) -> None:
    [row] = served(SCHEMA, [{"at": at, "born": born}])
    assert row[SCHEMA.columns["born"]] == pytest.approx([days], nan_ok=True)


NO_TIMES = ["soon", "2026-02-30", "25.11.2026", "2026-11-25T24:00:00", "NA", "1e999", 1e300, -1e300]


@pytest.mark.parametrize("value", [*NO_TIMES, 10**400, 10**20, "08:00", "true"])
def test_what_is_not_a_time_is_refused_in_its_row(value: Any) -> None:
    with pytest.raises(RowError, match="expected epoch seconds, epoch milliseconds or an") as error:
        served(SCHEMA, [{"at": 5}, {"at": 5, "born": value}])
    assert (error.value.row, error.value.feature) == (1, "born")
    sent = str(value) if isinstance(value, int) else value
    _, wrong = readers_of(SCHEMA.features)["at"](json_cells(["5", "5", sent, sent]))
    assert wrong is not None
    assert (wrong.row, wrong.problem) == (2, error.value.problem)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"at": True}, "data[0].at: expected a string or a number, got true"),
        ({"at": [1]}, "data[0].at: expected a string or a number, got [1]"),
        ({"tags": [["a"]]}, 'data[0].tags[0]: expected a string or a number, got ["a"]'),
        ({"tags": ["a", {}]}, "data[0].tags[1]: expected a string or a number, got {}"),
        ({"tags": {"a": 1}}, 'data[0].tags: expected a list, a string or a number, got {"a": 1}'),
        ({"item": ["a"]}, 'data[0].item: expected a string or a number, got ["a"]'),
        ([[["a"]], *[None] * 8], 'data[0].tags[0]: expected a string or a number, got ["a"]'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_its_place(row: Any, message: str) -> None:
    decoder = RequestDecoder(SCHEMA.row_type, SCHEMA.names, SCHEMA.names, max_rows=9)
    with pytest.raises(RequestError) as error:
        decoder.decode(msgspec.json.encode({"data": [row]}))
    assert (error.value.status, str(error.value)) == (400, message)


def test_a_text_is_one_token_without_a_separator() -> None:
    schema = FeatureSchema([Feature("t", kind="multi", vocabulary=("a|b", "a"), max_length=2)])
    assert served(schema, [{"t": "a|b"}, {"t": ["a|b"]}])[:, 0].tolist() == [2, 2]


def test_values_of_a_list_that_training_joins_by_are_refused() -> None:
    _, wrong = readers_of(SCHEMA.features)["tags"](pa.array([["a"], ["b", "x\x1fy"]]))
    assert wrong is not None
    assert (wrong.row, wrong.problem) == (1, "expected values without U+001F, got 'x\\x1fy'")


def test_vocabularies_count_every_token_of_every_list() -> None:
    frame = pd.DataFrame(
        {
            "tags": ["a\x1fb\x1fa", "b", None, "c"],
            "seen": ["i1\x1fi2", "i1", None, "i3"],
            "item": ["i2", "i3", "i4", None],
        }
    )
    drafts = [
        Feature("tags", kind="multi", max_length=2),
        Feature("seen", kind="history", items="item", max_length=2),
        Feature("item", kind="category"),
    ]
    schema = fit_schema(frame, drafts)
    assert [f.vocabulary for f in schema.features] == [("a", "b"), (), ("i1", "i2", "i3")]
    assert schema.cardinalities == [(4, 2), (5, 2, 4), 5]
    assert schema.vocabularies() == {"tags": ["a", "b"], "item": ["i1", "i2", "i3"]}
    hashed = fit_schema(
        frame, [Feature("tags", kind="multi", max_length=2, hash_ids=True), drafts[2]]
    )
    assert hashed.features[0].vocabulary == tuple(sorted(map(hashed_id, "ab")))
    np.testing.assert_array_equal(
        to_matrix(hashed, frame)[:, :2],
        served(hashed, [{"tags": v} for v in (["a", "b", "a"], [int(hashed_id("b"))], None, "c")])[
            :, :2
        ],
    )


@settings(max_examples=100, deadline=None)
@given(token=tokens.filter(lambda t: t is not None))
def test_a_token_and_its_integer_are_the_same_with_hash_ids(token: Any) -> None:
    try:
        text = to_token(token)
    except LostDigitsError:
        return
    if text is None:
        return
    number = hashed_id(text)
    schema = FeatureSchema(
        [
            Feature("known", kind="category", vocabulary=(number,), hash_ids=True),
            Feature("open", kind="category", hash_buckets=1 << 20, hash_ids=True),
            Feature("list", kind="multi", vocabulary=(number,), hash_ids=True, max_length=1),
        ]
    )
    sent = [token, text, float(number), number]
    matrix = served(schema, [{"known": v, "open": v, "list": [v]} for v in sent])
    assert (matrix == matrix[0]).all()
    assert matrix[0, [0, -1]].tolist() == [FIRST_TOKEN_INDEX] * 2


@pytest.mark.parametrize(
    ("text", "number"),  # known values of FNV-1a, without their 11 highest bits
    [
        ("a", 0xAF63DC4C8601EC8C & (1 << 53) - 1),
        ("foobar", 0x85944171F73967E8 & (1 << 53) - 1),
        ("196", 196),
    ],
)
def test_the_integer_of_a_text_is_its_fnv_1a_hash(text: str, number: int) -> None:
    assert hashed_id(text) == str(number)
