"""What the JSON and YAML files of an archive must hold, checked before anything acts on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import orjson
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from handlers.signature import Signature

MAX_PROBLEMS = 3

# A name that can stand in a URL and in a file name.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# A path below the folder that the archive is unpacked to: no "..", no "/" first, no "\".
_PART = "[A-Za-z0-9_-][A-Za-z0-9_ .+=@-]*"
FilePath = Annotated[str, StringConstraints(pattern=f"^{_PART}(/{_PART})*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

_STRICT = ConfigDict(strict=True, frozen=True)


def _named(feature: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(feature.get("name"), str):
        raise ValueError("expected a feature with a name")
    return feature


def _typed(output: dict[str, Any]) -> dict[str, Any]:
    if output.get("type") not in ("number", "vector", "object"):
        raise ValueError("expected a type: number, vector or object")
    return output


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class CheckedSignature(Signature):
    """A ``signature.json`` of which every name can stand in a URL and every path in the archive."""

    model_name: Name
    model_version: Name
    handler: FilePath
    features: list[Annotated[dict[str, Any], AfterValidator(_named)]]
    output: Annotated[dict[str, Any], AfterValidator(_typed)]
    libraries: dict[str, str]
    files: dict[FilePath, Sha256]


class _ManifestModel(BaseModel):
    """The part of the manifest that says which code to run; any more of it could name more code."""

    model_config = _STRICT | ConfigDict(extra="forbid")

    model_name: str = Field(alias="modelName")
    model_version: str = Field(alias="modelVersion")
    handler: str
    config_file: Literal["model-config.yaml"] = Field(alias="configFile")


class Manifest(BaseModel):
    """``MAR-INF/MANIFEST.json``."""

    model_config = _STRICT

    model: _ManifestModel
    runtime: Literal["python"]


class ModelConfig(BaseModel):
    """``model-config.yaml``: the settings without which a model could not be loaded."""

    model_config = _STRICT | ConfigDict(extra="allow")

    min_workers: int = Field(1, alias="minWorkers", ge=1)
    max_workers: int | None = Field(None, alias="maxWorkers")
    batch_size: int = Field(1, alias="batchSize", ge=1)
    max_batch_delay: int = Field(0, alias="maxBatchDelay", ge=0)
    response_timeout: int = Field(1, alias="responseTimeout", ge=1)
    startup_timeout: int = Field(1, alias="startupTimeout", ge=1)
    handler: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _room_for_min_workers(self) -> Self:
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"maxWorkers: expected at least minWorkers, {self.min_workers}")
        return self


class SampleRequest(BaseModel):
    """``sample_request.json``."""

    model_config = _STRICT

    data: list[Any] | dict[str, Any]


class Golden(BaseModel):
    """``golden.json``.

    Attributes:
        rows: Rows as in a request.
        predictions: The predictions that training computed, one per row.
    """

    model_config = _STRICT

    rows: list[Any] = Field(min_length=1)
    predictions: list[Any]

    @model_validator(mode="after")
    def _can_be_sent(self) -> Self:
        expected, got = len(self.rows), len(self.predictions)
        if got != expected:
            raise ValueError(f"expected a prediction for each of {expected} rows, got {got}")
        try:
            orjson.dumps(self.rows)
        except TypeError as error:  # such as an integer beyond 64 bits
            raise ValueError(f"rows: {error}") from error
        return self

    @property
    def request(self) -> bytes:
        """A request of all rows."""
        return orjson.dumps({"data": self.rows})

    @property
    def requests(self) -> list[bytes]:
        """A request of all rows, then one request per row."""
        return [self.request, *(orjson.dumps({"data": [row]}) for row in self.rows)]


SIGNATURE = TypeAdapter(CheckedSignature)


def read_config(text: bytes) -> dict[str, Any]:
    """Parse ``model-config.yaml``.

    Raises:
        ValidationError: If something in it is wrong.
        ValueError: If it is not readable.
    """
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not readable: {error}") from error
    config = {} if config is None else config
    ModelConfig.model_validate(config)
    return dict(config)


def problems(error: ValidationError) -> str:
    """Describe what pydantic found: where, what was expected and what came."""
    return "; ".join(
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
        for problem in error.errors()[:MAX_PROBLEMS]
    )
