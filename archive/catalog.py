"""The models: one for each ``archive/<name>/model-config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG_FILE = "model-config.yaml"


class UnknownModelError(ValueError):
    """A name that no model has; the message lists those that there are."""


@dataclass(frozen=True)
class Model:
    """A model that can be packaged and served.

    Attributes:
        name: Its folder under ``archive/``, its ``.mar`` and its name in URLs.
        config: TorchServe's settings; the section ``handler`` is ours.
    """

    name: str
    config: dict[str, Any]

    @property
    def config_path(self) -> Path:
        """``model-config.yaml``."""
        return ROOT / "archive" / self.name / CONFIG_FILE

    @property
    def artifacts(self) -> str:
        """The model whose training run this one is packaged from."""
        return str(self.config.get("handler", {}).get("artifacts", self.name))

    @property
    def handler_path(self) -> Path:
        """The handler's source."""
        return ROOT / "handlers" / f"{self.artifacts}_handler.py"


def model_names() -> list[str]:
    """Names of all models, sorted."""
    return sorted(path.parent.name for path in ROOT.glob(f"archive/*/{CONFIG_FILE}"))


def get(name: str) -> Model:
    """A model by its name.

    Raises:
        UnknownModelError: If there is none.
    """
    if name not in model_names():
        raise UnknownModelError(f"no model {name!r}; there are {', '.join(model_names())}")
    text = (ROOT / "archive" / name / CONFIG_FILE).read_text()
    return Model(name, yaml.safe_load(text))
