"""The sidecar's process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import requests

from serving.process import Child
from serving.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
REQUEST_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 12.0  # it gives requests in flight 10


def launch(settings: Settings, models: Sequence[str]) -> Child:
    """Start the sidecar of an instance.

    Args:
        settings: Of the instance.
        models: Those that it serves.
    """
    environment = (
        {"OTEL_SERVICE_NAME": "recmar-sidecar"}
        | os.environ
        | {
            "SIDECAR_HOST": settings.sidecar_host,
            "SIDECAR_PORT": str(settings.sidecar_port),
            "SIDECAR_INFERENCE_URL": settings.inference_url,
            "SIDECAR_MANAGEMENT_URL": settings.management_url,
            "SIDECAR_KEY_FILE": str(settings.key_file) if settings.token_auth else "",
            "SIDECAR_MODEL_STORE": str(settings.model_store.resolve()),
            "SIDECAR_MODELS": ",".join(models),
            "TMPDIR": str(settings.run_folder),
        }
    )
    command = [sys.executable, "-m", "sidecar.http.app"]
    return Child.start("the sidecar", command, settings.sidecar_log, cwd=ROOT, env=environment)


def healthy(settings: Settings) -> bool:
    """Whether the sidecar answers and can reach TorchServe."""
    with suppress(requests.RequestException):
        return _get(settings, "/ping").ok
    return False


def index_mismatches(settings: Settings) -> list[str]:
    """What the sidecar says of towers that do not match the item index; nothing if it is silent."""
    with suppress(requests.RequestException, ValueError):
        return list(_get(settings, "/health").json().get("index", []))
    return []


def _get(settings: Settings, path: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy on the way to the loopback
        return session.get(f"{settings.sidecar_url}{path}", timeout=REQUEST_TIMEOUT_S)


def drain(sidecar: Child) -> None:
    """Let the sidecar finish the requests in flight and end."""
    sidecar.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        sidecar.process.wait(DRAIN_TIMEOUT_S)


def terminate(sidecar: Child) -> None:
    """End the sidecar at once."""
    sidecar.process.kill()
    sidecar.process.wait()
