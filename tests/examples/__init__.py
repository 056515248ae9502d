"""What each model provides for the tests that all models share: ``tests/examples/<model>.py``.

Such a file defines ``EXAMPLES``; the first one is served as the model's default version.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archive import catalog
from serving.testing import numbers
from training.run import TrainingScript, load_script

if TYPE_CHECKING:
    from handlers.base import RecHandler


@dataclass(frozen=True, eq=False)
class Example:
    """A tiny training run of a model, with requests and the answers that they must get.

    Attributes:
        model: Name of the model in the catalog.
        version: Version of the artifacts, different for each example of a model.
        write_data: Writes data with a planted signal into a folder.
        arguments: Arguments with which the training script takes about a second.
        rows: Ten or more request rows, all with different predictions.
        offline: Computes predictions, as JSON, with the training code. Arguments: the artifact
            folder and the rows.
        reaches: Minimum of each metric after the tiny training run.
        libraries: Libraries that the handler imports in addition to those that every handler may.
    """

    model: str
    version: str
    write_data: Callable[[Path], None]
    arguments: Sequence[str]
    rows: list[Any]
    offline: Callable[[Path, list[Any]], list[Any]]
    reaches: Mapping[str, float]
    libraries: frozenset[str] = frozenset()

    def __str__(self) -> str:
        """Return the name that appears in test ids."""
        return f"{self.model}-{self.version}"


def model_names() -> list[str]:
    """Return the models of the catalog that have a file here; a test finds the others."""
    files = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return [model for model in catalog.model_names() if model in files]


def module(model: str) -> ModuleType:
    """Import the file of a model."""
    return importlib.import_module(f"tests.examples.{model}")


def examples() -> list[Example]:
    """Return the examples of all models."""
    return [example for model in model_names() for example in module(model).EXAMPLES]


def training_script(model: str) -> TrainingScript:
    """Return the training script of a model."""
    return load_script(catalog.get(model).training[0])


def train(model: str, *flags: str) -> int:
    """Run a model's training script and return its exit status."""
    own = catalog.get(model).training[1:]
    status: int = training_script(model).main([*own, *flags])
    return status


def load_handler(model: str, folder: Path) -> RecHandler:
    """Find a model's handler as TorchServe does, and load an artifact folder with it."""
    # TorchServe logs when it is imported.
    from ts.utils.util import list_classes_from_module

    entry = catalog.get(model)
    source = importlib.import_module(f"handlers.{entry.handler_path.stem}")
    [handler_class] = list_classes_from_module(source)
    handler: RecHandler = handler_class()
    handler.load(folder, entry.handler_config)
    return handler


def request(data: Any) -> bytes:
    """Return the body of a request."""
    return orjson.dumps({"data": data})


def predict(handler: RecHandler, data: Any) -> Any:
    """Return the predictions of a handler for one request."""
    [(status, body)], _ = handler.answer([request(data)])
    assert status == 200, body
    return orjson.loads(body)["predictions"]


def close(value: Any) -> Any:
    """Return what the numbers of a JSON value are compared with, at rtol 1e-5."""
    # An element near 0 is a sum of larger numbers and has their rounding error.
    return pytest.approx(dict(numbers(value)), rel=1e-5, abs=1e-7)
