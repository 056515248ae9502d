"""Where the sidecar listens and what it talks to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handlers.errors import UserError


class SettingsError(UserError):
    """A variable's value makes no sense; the message says what was expected."""


@dataclass(frozen=True)
class Settings:
    """The environment variables ``SIDECAR_<NAME>`` of these names, and ``RELOAD_API_KEY``.

    Attributes:
        host: Loopback unless set; 0.0.0.0 lets callers on other machines in.
        port: Where the routes answer.
        inference_url: TorchServe's predictions.
        management_url: TorchServe's management API.
        key_file: TorchServe's ``key_file.json`` when it asks for tokens.
        model_store: Folder of the archives.
        models: Models that must be ready, comma-separated; empty for those of the model store.
        timeout_s: Seconds until a request that TorchServe does not answer gets 504.
        index_uri: Where the live item index is, to compare it with the towers; empty for none.
        reload_api_key: What ``POST /reload`` asks for, unless it is empty.
    """

    host: str
    port: int
    inference_url: str
    management_url: str
    key_file: Path | None
    model_store: Path
    models: tuple[str, ...]
    timeout_s: float
    index_uri: str
    reload_api_key: str = field(repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the variables; an empty one counts as unset.

        Raises:
            SettingsError: If a value makes no sense.
        """
        port = env.get("SIDECAR_PORT") or "8090"
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise SettingsError(f"SIDECAR_PORT={port}: expected a port, 1 to 65535")
        key_file = env.get("SIDECAR_KEY_FILE")
        model_store = Path(env.get("SIDECAR_MODEL_STORE") or "model-store")
        models = [name.strip() for name in env.get("SIDECAR_MODELS", "").split(",")]
        return cls(
            host=env.get("SIDECAR_HOST") or "127.0.0.1",
            port=int(port),
            inference_url=env.get("SIDECAR_INFERENCE_URL") or "http://127.0.0.1:8080",
            management_url=env.get("SIDECAR_MANAGEMENT_URL") or "http://127.0.0.1:8081",
            key_file=Path(key_file) if key_file else None,
            model_store=model_store,
            models=tuple(filter(None, models))
            # A deploy stages <model>-<version>.mar, and leaves it there when it is killed.
            or tuple(sorted(m.stem for m in model_store.glob("*.mar") if "-" not in m.stem)),
            timeout_s=_seconds(env.get("SIDECAR_TIMEOUT_S") or "10"),
            index_uri=env.get("INDEX_URI", ""),
            reload_api_key=env.get("RELOAD_API_KEY", ""),
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(f"SIDECAR_TIMEOUT_S={text}: expected seconds above 0")
    return seconds
