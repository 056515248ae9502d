"""The bad input of docs/errors.md, row by row, over HTTP with real TorchServe."""

from __future__ import annotations

import gzip
import re
import time
from collections import Counter
from typing import Any

import pytest
import requests

from handlers.telemetry import FLUSH_INTERVAL_S
from serving.testing import Server, numbers
from tests.examples import Example, close, examples, model_names, module

FLUSH_TIMEOUT_S = 10.0

JSON = {"Content-Type": "application/json"}
LONG = b"x" * 1000


def post(server: Server, model: str, body: bytes, headers: dict[str, str] = JSON) -> Any:
    url = f"{server.inference_url}/predictions/{model}"
    return requests.post(url, data=body, headers=headers, timeout=30)


def check_error(answer: requests.Response, status: int, kind: str, message: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    error = answer.json()
    assert list(error) == ["code", "type", "message"]
    assert (error["code"], error["type"]) == (status, kind)
    assert message in error["message"]


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: expected JSON"),
        (b"not JSON", "body: expected JSON"),
        (b'{"data": [{}]', "body: expected JSON"),
        (b'{"data": [\xff]}', "got bytes that are not UTF-8 (0xff at position 10); send UTF-8"),
        (gzip.compress(b'{"data": [{}]}', mtime=0), "got a gzip body; send it uncompressed"),
        (
            b'\xef\xbb\xbf{"data": [{}]}',
            "got UTF-8 with a byte order mark; send it without the mark",
        ),
        ('{"data": [{}]}'.encode("utf-16"), "got UTF-16; send UTF-8"),
        (b"[" * 100_000, "body: Expected `object`, got `array`"),
        (b"{}", 'data: expected it in {"data": [{...}, ...]}, got no such key'),
        (b"[{}]", 'body: expected an object like {"data": [{...}, ...]}, got [{}]'),
        (b"null", "body: expected an object"),
        (b'{"data": []}', "data: expected at least one row, got an empty list"),
        (b'{"data": null}', "data: expected"),
        (b'{"data": "%b"}' % LONG, "data: expected"),
        (b'{"data": 1}', "data: expected"),
        (b'{"data": [null]}', "data[0]: expected"),
        (b'{"data": ["a"]}', "data[0]: expected"),
        (b'{"data": [{}, 7]}', "data[1]: expected"),
        (b'{"data": [[[]]]}', "data[0]"),
    ],
)
def test_body_of_the_wrong_shape_gets_400_with_the_expected_shape(
    server: Server, model: str, body: bytes, message: str
) -> None:
    answer = post(server, model, body)
    check_error(answer, 400, "InvalidRequest", message)
    assert len(answer.text) < 300


@pytest.mark.parametrize("model", model_names())
def test_form_gets_400_that_names_the_content_type(server: Server, model: str) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d sends
    answer = post(server, model, b'{"data": [{}]}', form)
    check_error(answer, 400, "InvalidRequest", "send Content-Type: application/json")


@pytest.mark.parametrize("model", ["xgb", "deepfm", "mmoe"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"user_age": "abc"}', 'data[1].user_age: expected a number, got "abc"'),
        (b'{"user_age": {"a": 1}}', 'data[1].user_age: expected a number, got {"a": 1}'),
        (b'{"user_age": [1]}', "data[1].user_age: expected a number, got [1]"),
        (b'{"user_age": true}', "data[1].user_age: expected a number, got true; send 1 for true"),
        (
            b'{"user_agee": 1, "b": 2}',
            "data[1]: expected features of the model (item_ctr, item_cvr,",
        ),
        (b'{"user_agee": 1, "b": 2}', "got 2 unknown of 2 keys: user_agee, b"),
        (b'{"no_such": 1, "item_ctr": ""}', 'data[1].item_ctr: expected a number, got ""'),
        (b'{"user_age": 1e999}', "data[1].user_age: expected a number within float64, got 1e999"),
        (b'{"user_age": -1e999}', "data[1].user_age: expected a number within float64, got -1e999"),
        (b'{"user_age": NaN}', "body: expected JSON"),
        (b"[1, 2, 3]", "data[1]: expected 7 values (item_ctr, item_cvr, item_price, user_age, "),
        (b"[1, 2, 3]", "cross_gender_x_price), got 3"),
        (b"[1, 2, 3, 4, 5, 6, 7, 8]", "got 8"),
        (b"[]", "got 0"),
        (b'[1, 2, 3, "4", 5, 6, 7]', 'data[1].user_age: expected a number, got "4"'),
        (b"[1, 1e999, 3, 4, 5, 6, 7]", "data[1].item_cvr: expected a number within float64"),
    ],
)
def test_bad_feature_is_named_with_its_row(
    server: Server, model: str, row: bytes, message: str
) -> None:
    answer = post(server, model, b'{"data": [{}, %b]}' % row)
    check_error(answer, 400, "InvalidRequest", message)


@pytest.mark.parametrize("model", ["xgb", "deepfm", "mmoe"])
def test_missing_and_null_and_huge_features_are_served_with_the_default(
    server: Server, model: str
) -> None:
    rest = b'"item_ctr": 0.1, "item_cvr": 0.02, "item_price": 50, "user_gender": 1'
    bodies = [
        b'{%b, "user_age": 0}' % rest,
        b"{%b}" % rest,
        b'{%b, "user_age": null}' % rest,
        b'{%b, "user_age": 1e300}' % rest,
        b'{%b, "user_age": -1e300}' % rest,
        b'{%b, "user_age": 0, "no_such_feature": [1, {"a": "b"}]}' % rest,
    ]
    answer = post(server, model, b'{"data": [%b]}' % b",".join(bodies))
    assert answer.status_code == 200, answer.text
    first, *others = answer.json()["predictions"]
    assert dict(numbers(others)) == close([first] * 5)


@pytest.mark.parametrize("model", model_names())
def test_more_rows_than_the_limit_get_413(server: Server, model: str) -> None:
    answer = post(server, model, b'{"data": [%b]}' % b",".join([b"{}"] * 10_001))
    check_error(answer, 413, "TooManyRows", "data: expected at most 10000 rows, got 10001")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("nothing", "ModelNotFoundException"),
        ("xgb/9.9", "ModelVersionNotFoundException"),
    ],
)
def test_unknown_model_or_version_gets_torchserves_own_404(
    server: Server, path: str, kind: str
) -> None:
    answer = post(server, path, b'{"data": [{}]}')
    assert (answer.status_code, answer.json()["type"]) == (404, kind)


# Models over the columns of tests.examples.ranking, ids among them.
RANKERS_OVER_IDS = [
    example
    for example in examples()
    if example.version == "ids" and example.model in ("xgb", "deepfm")
]


@pytest.mark.parametrize("example", RANKERS_OVER_IDS, ids=str)
def test_unusual_features_are_counted(server: Server, example: Example) -> None:
    before = counters(server)
    rows: list[dict[str, Any]] = [
        {"user_id": "nobody", "item_id": "nothing", "price (EUR)": 1e300, "user.age": 1000},
        {"user_id": "nobody", "item_id": "item_3", "price (EUR)": 5.0, "no such": 1, "class": None},
    ]
    rows[0] |= {"tags": ["1", 2, None, "nothing", "4"], "item-tags": []}
    answer = requests.post(
        f"{server.inference_url}/predictions/{example.model}/{example.version}",
        json={"data": rows},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    expected = {
        ("missing", "user.age"): 1,
        ("missing", "class"): 2,
        ("missing", "tags"): 1,
        ("missing", "item-tags"): 2,
        ("missing", "event_time"): 2,
        ("missing", "published"): 2,
        ("truncated", "tags"): 1,
        ("unknown", "no_such"): 1,
        ("out_of_range", "price__EUR_"): 1,
        ("out_of_range", "user.age"): 1,
        ("out_of_vocabulary", "user_id"): 2,
        ("out_of_vocabulary", "item_id"): 1,
        ("out_of_vocabulary", "tags"): 1,
    }
    wanted = Counter(
        {
            f'recmar_feature_{kind}{{model_name="{example.model}",'
            f'model_version="{example.version}",feature="{feature}"': n
            for (kind, feature), n in expected.items()
        }
    )
    assert growth(server, before, wanted, f'version="{example.version}",feature=') == wanted


def test_bad_requests_and_latencies_are_counted(server: Server) -> None:
    [example, *_] = module("xgb").EXAMPLES
    labels = f'model_name="xgb",model_version="{example.version}"'
    before = settled_counters(server)
    for body in (b'{"data": [{}, {}]}', b'{"data": [{}]}', b"not JSON"):
        post(server, "xgb", body)
    wanted = Counter(
        {
            f'recmar_requests{{{labels},status="200"': 2,
            f'recmar_requests{{{labels},status="400"': 1,
            f"recmar_rows{{{labels}": 3,
            f"recmar_handler_latency_ms_count{{{labels}": 3,
            f'recmar_handler_latency_ms_bucket{{{labels},le="+Inf"': 3,
            f'recmar_handler_latency_ms_bucket{{{labels},le="1000"': 3,
        }
    )
    grown = growth(server, before, wanted, labels)
    assert {key: grown[key] for key in wanted} == wanted
    buckets = [
        value
        for key, value in sorted(grown.items(), key=bound)
        if key.startswith("recmar_handler_latency_ms_bucket")
    ]
    assert buckets == sorted(buckets)
    assert 0 < grown[f"recmar_handler_latency_ms_sum{{{labels}"] < 3000


def bound(item: tuple[str, float]) -> float:
    """Return the upper bound of a histogram's bucket."""
    match = re.search(r'le="(.*)"', item[0])
    return float(match[1]) if match else 0.0


def counters(server: Server) -> Counter[str]:
    """Read our own series from the metrics port, by name and labels."""
    text = requests.get(f"{server.metrics_url}/metrics", timeout=10).text
    series = re.findall(r'^(recmar_.*),Hostname="[^"]*",} (.*)$', text, re.MULTILINE)
    return Counter({name: float(value) for name, value in series})


def settled_counters(server: Server) -> Counter[str]:
    """Read our own series, once they include the requests of the tests before."""
    deadline = time.monotonic() + FLUSH_TIMEOUT_S
    current = counters(server)
    while True:
        time.sleep(2 * FLUSH_INTERVAL_S)
        previous, current = current, counters(server)
        if current == previous or time.monotonic() > deadline:
            return current


def growth(
    server: Server, before: Counter[str], wanted: Counter[str], containing: str
) -> Counter[str]:
    """Return the growth of the counters, once it includes the wanted one."""
    deadline = time.monotonic() + FLUSH_TIMEOUT_S
    while True:
        grown = counters(server)
        grown.subtract(before)
        grown = Counter({k: v for k, v in grown.items() if v and containing in k})
        if wanted <= grown or time.monotonic() > deadline:
            return grown
        time.sleep(0.1)
