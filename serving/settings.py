"""What an instance serves and where it listens."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import UserError


class ServeError(UserError):
    """Something that the user can set right; its text is the whole message."""


@dataclass(frozen=True)
class Settings:
    """What an instance serves and where it listens: the environment variables of these names.

    Attributes:
        enabled_models: Models to serve, comma-separated; empty for all.
        model_store: Folder of the archives.
        inference_host: Loopback unless set; 0.0.0.0 lets callers on other machines in.
        inference_port: Also tells the instances of a machine apart.
        management_port: On loopback always: who reaches it can run code.
        metrics_host: Loopback unless set, as inference_host.
        metrics_port: Where Prometheus finds TorchServe's and the handlers' series.
        sidecar_host: Loopback unless set, as inference_host.
        sidecar_port: Where the sidecar's routes answer.
        token_auth: 1 asks callers for a bearer token.
        log_location: Folder of the logs.
    """

    enabled_models: tuple[str, ...]
    model_store: Path
    inference_host: str
    inference_port: int
    management_port: int
    metrics_host: str
    metrics_port: int
    sidecar_host: str
    sidecar_port: int
    token_auth: bool
    log_location: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the variables; an empty one counts as unset.

        Raises:
            ServeError: If a value makes no sense.
        """
        token_auth = env.get("TOKEN_AUTH") or "0"
        if token_auth not in ("0", "1"):
            raise ServeError(f"TOKEN_AUTH={token_auth}: expected 0 or 1")
        names = [name.strip() for name in env.get("ENABLED_MODELS", "").split(",")]
        settings = cls(
            enabled_models=tuple(filter(None, names)),
            model_store=Path(env.get("MODEL_STORE") or "model-store"),
            inference_host=env.get("INFERENCE_HOST") or "127.0.0.1",
            inference_port=_port(env, "INFERENCE_PORT", 8080),
            management_port=_port(env, "MANAGEMENT_PORT", 8081),
            metrics_host=env.get("METRICS_HOST") or "127.0.0.1",
            metrics_port=_port(env, "METRICS_PORT", 8082),
            sidecar_host=env.get("SIDECAR_HOST") or "127.0.0.1",
            sidecar_port=_port(env, "SIDECAR_PORT", 8090),
            token_auth=token_auth == "1",
            log_location=Path(env.get("LOG_LOCATION") or "logs"),
        )
        if len({port for _, _, port in settings.addresses}) < len(settings.addresses):
            told = ", ".join(f"{name}={port}" for name, _, port in settings.addresses)
            raise ServeError(f"{told}: expected four different ports")
        return settings

    @property
    def addresses(self) -> list[tuple[str, str, int]]:
        """Variable, host and port of each listener."""
        return [
            ("INFERENCE_PORT", self.inference_host, self.inference_port),
            ("MANAGEMENT_PORT", "127.0.0.1", self.management_port),
            ("METRICS_PORT", self.metrics_host, self.metrics_port),
            ("SIDECAR_PORT", self.sidecar_host, self.sidecar_port),
        ]

    @property
    def inference_url(self) -> str:
        """Where callers on this machine reach the models."""
        return _url(self.inference_host, self.inference_port)

    @property
    def management_url(self) -> str:
        """Where the management API answers."""
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def sidecar_url(self) -> str:
        """Where callers on this machine reach the sidecar."""
        return _url(self.sidecar_host, self.sidecar_port)

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its tokens when they are on."""
        return self.run_folder / "key_file.json"

    @property
    def run_folder(self) -> Path:
        """Temporary folder of the running instance: sockets, unpacked archives, tokens."""
        return Path(tempfile.gettempdir()).resolve() / f"recmar-{self.inference_port}"

    @property
    def log(self) -> Path:
        """The log of TorchServe and of its workers."""
        return self.log_location.resolve() / f"torchserve-{self.inference_port}.log"

    @property
    def sidecar_log(self) -> Path:
        """The log of the sidecar, a JSON object a line."""
        return self.log_location.resolve() / f"sidecar-{self.sidecar_port}.log"


def _url(host: str, port: int) -> str:
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"


def _port(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ServeError(f"{name}={text}: expected a port, 1 to 65535")
    return int(text)
