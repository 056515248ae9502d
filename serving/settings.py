"""Settings of a running server, read from environment variables."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from handlers.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LOOPBACK = "127.0.0.1"


class ServeError(UserError):
    """A server cannot be configured, started or stopped."""


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError("expected a port, 1 to 65535")
    return int(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return text == "1"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError("expected seconds above 0")
    return seconds


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value  # a default is no text
    return tuple(filter(None, (name.strip() for name in names)))


Port = Annotated[int, BeforeValidator(_port)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class _Variables(BaseSettings):
    """The variables that a server and its sidecar share; every field is a variable in capitals.

    Attributes:
        sidecar_host: Address that the sidecar listens on; 0.0.0.0 admits other machines.
        sidecar_port: Port of the sidecar's routes.
        sidecar_timeout_s: Seconds until the sidecar answers 504 for a model that is too slow.
        index_uri: Address of the live item index, to compare with the towers; empty for none.
        reload_api_key: Value that ``POST /reload`` requires as ``X-API-Key``; empty for none.
    """

    model_config = SettingsConfigDict(
        alias_generator=str.upper,
        case_sensitive=True,
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    sidecar_host: str = LOOPBACK
    sidecar_port: Port = 8090
    sidecar_timeout_s: Seconds = 10.0
    index_uri: str = ""
    reload_api_key: SecretStr = SecretStr("")

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the settings from a mapping of variables; an empty variable counts as unset.

        Raises:
            ServeError: If a value is invalid.
        """
        source = EnvSettingsSource(cls)
        source.env_vars = {name: value for name, value in env.items() if value}
        try:
            return cls(**source())
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{name}={first['input']}: " for name in first["loc"])
            raise ServeError(f"{where}{first['ctx']['error']}") from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the variables from `from_env` only, not from this process's environment."""
        return (init_settings,)


class SidecarSettings(_Variables):
    """The settings of a sidecar's process.

    Attributes:
        sidecar_inference_url: URL of TorchServe's predictions.
        sidecar_management_url: URL of TorchServe's management API.
        sidecar_key_file: TorchServe's ``key_file.json`` if it requires tokens.
        sidecar_model_store: Folder of the archives.
        sidecar_models: Models that must be ready; by default those of the model store.
    """

    sidecar_inference_url: str = f"http://{LOOPBACK}:8080"
    sidecar_management_url: str = f"http://{LOOPBACK}:8081"
    sidecar_key_file: Path | None = None
    sidecar_model_store: Path = Path("model-store")
    sidecar_models: Names = Field(default=(), validate_default=True)

    @field_validator("sidecar_models", mode="after")
    @classmethod
    def _all_by_default(cls, models: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # A deploy stages <model>-<version>.mar and leaves it behind when it is killed.
        files = info.data["sidecar_model_store"].glob("*.mar")
        return models or tuple(sorted(mar.stem for mar in files if "-" not in mar.stem))


class Settings(_Variables):
    """The settings of a server: TorchServe and its sidecar.

    Attributes:
        enabled_models: Models to serve; empty for all.
        model_store: Folder of the archives.
        inference_host: Address that TorchServe listens on; 0.0.0.0 admits other machines.
        inference_port: Port of the predictions; it also identifies a server on its machine.
        management_port: Port of the management API, always on loopback: its callers can run code.
        metrics_host: Address of the metrics; 0.0.0.0 admits other machines.
        metrics_port: Port of the metrics of TorchServe and of the handlers.
        token_auth: Callers must send a bearer token.
        log_location: Folder of the logs.
    """

    enabled_models: Names = ()
    model_store: Path = Path("model-store")
    inference_host: str = LOOPBACK
    inference_port: Port = 8080
    management_port: Port = 8081
    metrics_host: str = LOOPBACK
    metrics_port: Port = 8082
    token_auth: Flag = False
    log_location: Path = Path("logs")

    @model_validator(mode="after")
    def _different_ports(self) -> Self:
        if len({port for _, _, port in self.addresses}) < len(self.addresses):
            ports = ", ".join(f"{name}={port}" for name, _, port in self.addresses)
            raise ValueError(f"{ports}: expected four different ports")
        return self

    @property
    def addresses(self) -> list[tuple[str, str, int]]:
        """Variable, host and port of each listener."""
        return [
            ("INFERENCE_PORT", self.inference_host, self.inference_port),
            ("MANAGEMENT_PORT", LOOPBACK, self.management_port),
            ("METRICS_PORT", self.metrics_host, self.metrics_port),
            ("SIDECAR_PORT", self.sidecar_host, self.sidecar_port),
        ]

    @property
    def inference_url(self) -> str:
        """URL of the predictions for callers on this machine."""
        return _url(self.inference_host, self.inference_port)

    @property
    def management_url(self) -> str:
        """URL of the management API."""
        return _url(LOOPBACK, self.management_port)

    @property
    def sidecar_url(self) -> str:
        """URL of the sidecar for callers on this machine."""
        return _url(self.sidecar_host, self.sidecar_port)

    @property
    def run_folder(self) -> Path:
        """Temporary folder of the running server: sockets, unpacked archives, tokens."""
        return Path(tempfile.gettempdir()).resolve() / f"recmar-{self.inference_port}"

    @property
    def key_file(self) -> Path:
        """File that TorchServe writes its tokens to if it requires them."""
        return self.run_folder / "key_file.json"

    @property
    def log(self) -> Path:
        """Log of TorchServe and its workers."""
        return self.log_location.resolve() / f"torchserve-{self.inference_port}.log"

    @property
    def sidecar_log(self) -> Path:
        """Log of the sidecar, one JSON object per line."""
        return self.log_location.resolve() / f"sidecar-{self.sidecar_port}.log"


def _url(host: str, port: int) -> str:
    return f"http://{LOOPBACK if host == '0.0.0.0' else host}:{port}"
