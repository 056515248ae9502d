"""The models: one for each ``archive/<name>/model-config.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from handlers.errors import UserError
from serving.archive_file import CONFIG_FILE as CONFIG_FILE
from serving.archive_schema import problems
from serving.settings import ROOT as ROOT

CARD_FILE = "card.yaml"


@dataclass(frozen=True)
class Index:
    """The Milvus collection of a model's item vectors.

    Attributes:
        collection: The alias that callers search; it points at the newest collection.
        metric: ``IP`` or ``COSINE``.
    """

    collection: str
    metric: str


class Text(BaseModel):
    """A cell of the README's table; a plain string serves both languages.

    Attributes:
        en: English.
        zh: Chinese.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    en: str
    zh: str

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, value: Any) -> Any:
        return {"en": value, "zh": value} if isinstance(value, str) else value


class Card(BaseModel):
    """``card.yaml``: a model's row in the README, and how good the model must be.

    Attributes:
        learns: What the model learns.
        row: One row of a request's ``data``.
        prediction: One of the answer's ``predictions``.
        bars: The least that each metric must reach on the default data; empty for a model that
            shares another's training run.
        quick_flags: Training flags that save time and still reach the bars.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learns: Text
    row: Text
    prediction: Text
    bars: dict[str, float] = {}
    quick_flags: str = ""


@dataclass(frozen=True)
class Model:
    """A model that can be packaged and served.

    Attributes:
        name: Its folder under ``archive/``, its ``.mar`` and its name in URLs.
        config: TorchServe's settings. The section ``handler`` is ours: in addition to what
            handlers read, ``index``, and for a model that shares another's training run, handler
            or training script ``artifacts``, ``golden``, ``handler`` and ``training``.
    """

    name: str
    config: dict[str, Any]

    @property
    def config_path(self) -> Path:
        """``model-config.yaml``."""
        return ROOT / "archive" / self.name / CONFIG_FILE

    @property
    def card(self) -> Card:
        """``card.yaml``.

        Raises:
            UserError: If the card is missing, or a field of it is missing or wrong.
        """
        return read_card(ROOT / "archive" / self.name / CARD_FILE, needs_bars=self.has_own_run)

    @property
    def handler_config(self) -> dict[str, Any]:
        """Our own section, which the handler reads too."""
        return self.config.get("handler") or {}

    @property
    def artifacts(self) -> str:
        """The model whose training run this one is packaged from."""
        return str(self.handler_config.get("artifacts", self.name))

    @property
    def has_own_run(self) -> bool:
        """Whether the model is packaged from a training run of its own name."""
        return self.artifacts == self.name

    @property
    def golden_file(self) -> str:
        """The file with this model's golden rows; a run that trains several models has several."""
        return str(self.handler_config.get("golden", "golden.json"))

    @property
    def handler_path(self) -> Path:
        """The handler's source."""
        stem = self.handler_config.get("handler", f"{self.artifacts}_handler")
        return ROOT / "handlers" / f"{stem}.py"

    @property
    def index(self) -> Index | None:
        """The collection that the item vectors of the training run go to."""
        index = self.handler_config.get("index")
        return Index(**index) if index else None

    @property
    def training(self) -> list[str]:
        """Module and arguments of the training script."""
        return str(self.handler_config.get("training", f"train_{self.artifacts}")).split()


def read_card(path: Path, *, needs_bars: bool) -> Card:
    """Read a model's ``card.yaml``.

    Args:
        path: The file.
        needs_bars: Whether the model has a training run of its own, and so needs bars.

    Raises:
        UserError: If the file is missing or not readable, or a field is missing or wrong.
    """
    try:
        card = Card.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; write one, docs/new-model.md says how") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not readable YAML: {error}") from error
    except ValidationError as error:
        raise UserError(f"{path}: {problems(error)}") from error
    if needs_bars and not card.bars:
        raise UserError(f"{path}: bars: expected a metric and its least value, such as auc: 0.75")
    if card.bars and not needs_bars:
        raise UserError(
            f"{path}: bars: this model shares another's training run; its bars stand in that card"
        )
    return card


def model_names() -> list[str]:
    """Return the names of all models, sorted."""
    return sorted(path.parent.name for path in ROOT.glob(f"archive/*/{CONFIG_FILE}"))


def get(name: str) -> Model:
    """Return a model by its name.

    Raises:
        UserError: If there is no such model; the message lists those there are.
    """
    if name not in model_names():
        raise UserError(f"no model {name!r}; there are {', '.join(model_names())}")
    text = (ROOT / "archive" / name / CONFIG_FILE).read_text()
    return Model(name, yaml.safe_load(text))
