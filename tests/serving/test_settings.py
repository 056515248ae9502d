"""Settings from environment variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.settings import Settings, SidecarSettings


def test_secret_does_not_show() -> None:
    settings = SidecarSettings.from_env({"RELOAD_API_KEY": "secret"})
    assert settings.reload_api_key.get_secret_value() == "secret"
    assert "secret" not in f"{settings!r} {settings}"


def test_empty_variable_counts_as_unset() -> None:
    names = ("INFERENCE_PORT", "TOKEN_AUTH", "MODEL_STORE", "ENABLED_MODELS", "RELOAD_API_KEY")
    assert Settings.from_env(dict.fromkeys(names, "")) == Settings.from_env({})


def test_variables_of_this_process_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERENCE_PORT", "9")
    assert Settings.from_env({}).inference_port == 8080


def test_values_are_parsed() -> None:
    env = {"ENABLED_MODELS": "xgb, deepfm,", "TOKEN_AUTH": "1", "MODEL_STORE": "a/b"}
    settings = Settings.from_env(env | {"INFERENCE_HOST": "0.0.0.0"})
    assert settings.enabled_models == ("xgb", "deepfm")
    assert settings.token_auth
    assert settings.model_store == Path("a/b")
    assert settings.inference_url == "http://127.0.0.1:8080"
