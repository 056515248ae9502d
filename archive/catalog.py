"""The models: one for each ``archive/<name>/model-config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from handlers.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
CONFIG_FILE = "model-config.yaml"


class UnknownModelError(UserError):
    """A name that no model has; the message lists those that there are."""


@dataclass(frozen=True)
class Index:
    """Where a model's item vectors go.

    Attributes:
        collection: Its name for those who search it, an alias of the newest one.
        metric: ``IP`` or ``COSINE``.
    """

    collection: str
    metric: str


@dataclass(frozen=True)
class Model:
    """A model that can be packaged and served.

    Attributes:
        name: Its folder under ``archive/``, its ``.mar`` and its name in URLs.
        config: TorchServe's settings; the section ``handler`` is ours: beside what handlers read,
            ``artifacts``, ``golden``, ``handler`` and ``training`` for a model that shares
            another's training run, handler or training script, and ``index``.
    """

    name: str
    config: dict[str, Any]

    @property
    def config_path(self) -> Path:
        """``model-config.yaml``."""
        return ROOT / "archive" / self.name / CONFIG_FILE

    @property
    def handler_config(self) -> dict[str, Any]:
        """Our own section, which the handler reads too."""
        return self.config.get("handler") or {}

    @property
    def artifacts(self) -> str:
        """The model whose training run this one is packaged from."""
        return str(self.handler_config.get("artifacts", self.name))

    @property
    def golden_file(self) -> str:
        """The golden rows of this model, where one run trains several."""
        return str(self.handler_config.get("golden", "golden.json"))

    @property
    def handler_path(self) -> Path:
        """The handler's source."""
        stem = self.handler_config.get("handler", f"{self.artifacts}_handler")
        return ROOT / "handlers" / f"{stem}.py"

    @property
    def index(self) -> Index | None:
        """The collection that the item vectors of its training run are looked up in."""
        index = self.handler_config.get("index")
        return Index(**index) if index else None

    @property
    def training(self) -> list[str]:
        """Module and arguments of the training script."""
        return str(self.handler_config.get("training", f"train_{self.artifacts}")).split()


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
