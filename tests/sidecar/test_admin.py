"""Who may replace the models that serve."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from pydantic import SecretStr
from starlette.requests import Request

from sidecar.http.admin import _check_caller


def call(peer: str, headers: dict[str, str], expected: str = "", key: str | None = None) -> None:
    scope: Any = {
        "type": "http",
        "client": (peer, 4000),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    shared: Any = SimpleNamespace(settings=SimpleNamespace(reload_api_key=SecretStr(expected)))
    asyncio.run(_check_caller(Request(scope), shared, key))


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8090"}),
        ("::1", {"host": "[::1]:8090"}),
        ("::ffff:127.0.0.1", {"host": "localhost:8090"}),
        (
            "127.0.0.1",
            {
                "host": "localhost:8090",
                "origin": "http://localhost:8090",
                "sec-fetch-site": "same-origin",
            },
        ),
    ],
)
def test_without_a_key_callers_on_this_machine_may_reload(
    peer: str, headers: dict[str, str]
) -> None:
    call(peer, headers)


@pytest.mark.parametrize(
    ("peer", "headers", "reason"),
    [
        ("10.0.0.7", {"host": "127.0.0.1:8090"}, "got 10.0.0.7"),
        ("::ffff:10.0.0.7", {"host": "127.0.0.1:8090"}, "got ::ffff:10.0.0.7"),
        ("127.0.0.1", {"host": "127.0.0.1", "x-forwarded-for": "10.0.0.7"}, "behind a proxy"),
        ("127.0.0.1", {"host": "127.0.0.1", "forwarded": "for=10.0.0.7"}, "behind a proxy"),
        ("127.0.0.1", {"host": "evil.example:8090"}, "that calls this machine evil.example:8090"),
        ("127.0.0.1", {}, "that calls this machine"),
        (
            "127.0.0.1",
            {"host": "127.0.0.1:8090", "origin": "http://evil.example"},
            "a page of http://evil.example",
        ),
        (
            "127.0.0.1",
            {"host": "127.0.0.1:8090", "origin": "http://127.0.0.1:3000"},
            "a page of http://127.0.0.1:3000",
        ),
        ("127.0.0.1", {"host": "127.0.0.1:8090", "origin": "null"}, "a page of null"),
        (
            "127.0.0.1",
            {"host": "127.0.0.1:8090", "sec-fetch-site": "cross-site"},
            "a page of another site",
        ),
    ],
)
def test_without_a_key_all_others_are_refused(
    peer: str, headers: dict[str, str], reason: str
) -> None:
    with pytest.raises(HTTPException) as refusal:
        call(peer, headers)
    assert refusal.value.status_code == 403
    assert reason in refusal.value.detail
    assert "RELOAD_API_KEY" in refusal.value.detail


def test_with_a_key_only_the_key_counts() -> None:
    call("10.0.0.7", {"host": "recmar", "x-forwarded-for": "10.0.0.8"}, "secret", "secret")
    for key in (None, "another"):
        with pytest.raises(HTTPException, match="401"):
            call("127.0.0.1", {"host": "127.0.0.1"}, "secret", key)
