"""What a model brings to the tests that all models share: ``tests/examples/<model>.py``.

Such a file defines ``EXAMPLES``, of which the first is served as the model's default version.
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
    """A model trained tiny, with requests and the answers that they must get.

    Attributes:
        model: Its name in the catalog.
        version: Of its artifacts; tells the examples of a model apart.
        write_data: Writes planted-signal data into a folder.
        arguments: Of the training script, so that it takes about a second.
        rows: Request rows, ten or more, all with different predictions.
        offline: The training code's own predictions, as JSON, for an artifact folder and rows.
        reaches: The least that the tiny training must reach, by metric.
        libraries: What the handler imports beside the libraries that every handler may.
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
        """Its name in a test's."""
        return f"{self.model}-{self.version}"


def model_names() -> list[str]:
    """The models of the catalog, but for one that lacks its file: a test of its own says so."""
    files = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return [model for model in catalog.model_names() if model in files]


def module(model: str) -> ModuleType:
    """The file that a model brings."""
    return importlib.import_module(f"tests.examples.{model}")


def examples() -> list[Example]:
    """The examples of all models."""
    return [example for model in model_names() for example in module(model).EXAMPLES]


def training_script(model: str) -> TrainingScript:
    """What trains a model."""
    return load_script(catalog.get(model).training[0])


def train(model: str, *flags: str) -> int:
    """Run a model's training script and return its exit status."""
    own = catalog.get(model).training[1:]
    status: int = training_script(model).main([*own, *flags])
    return status


def load_handler(model: str, folder: Path) -> RecHandler:
    """A model's handler, found as TorchServe finds it, over an artifact folder."""
    # TorchServe logs when it is imported.
    from ts.utils.util import list_classes_from_module

    entry = catalog.get(model)
    source = importlib.import_module(f"handlers.{entry.handler_path.stem}")
    [handler_class] = list_classes_from_module(source)
    handler: RecHandler = handler_class()
    handler.load(folder, entry.handler_config)
    return handler


def request(data: Any) -> bytes:
    """The body of a request."""
    return orjson.dumps({"data": data})


def predict(handler: RecHandler, data: Any) -> Any:
    """The predictions that a handler has for one request."""
    [(status, body)], _ = handler.answer([request(data)])
    assert status == 200, body
    return orjson.loads(body)["predictions"]


def close(value: Any) -> Any:
    """What the numbers of a JSON value are compared with: equal to its own at rtol 1e-5."""
    # A vector's place that is near 0 comes from sums of larger numbers, and rounds as they do.
    return pytest.approx(dict(numbers(value)), rel=1e-5, abs=1e-7)
