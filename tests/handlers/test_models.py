"""A file of ``handlers/models`` holds one model and imports no other model."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import handlers

HANDLERS = Path(handlers.__file__).parent
MODELS = sorted(HANDLERS.glob("models/[!_]*.py"))
SHARED = {f"handlers.models.{name}" for name in ("inputs", "layers", "text", "weights")}
# These and the handlers of single models import TorchServe.
BASE_CLASSES = {"base", "feature_rows", "wrapped_rows", "telemetry"}
CORE = {
    f"handlers.{path.stem}"
    for path in HANDLERS.glob("[!_]*.py")
    if path.stem not in BASE_CLASSES and not path.stem.endswith("_handler")
}


def own_imports(source: str) -> set[str]:
    """Return the modules of ``handlers`` that the source of a model imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = resolve_name("." * node.level + (node.module or ""), "handlers.models")
            names.update([package, *(f"{package}.{alias.name}" for alias in node.names)])
    return {name for name in names if is_module(name)}


def is_module(name: str) -> bool:
    return HANDLERS.parent.joinpath(*name.split(".")).with_suffix(".py").exists()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_imports_only_what_models_share(path: Path) -> None:
    allowed = SHARED | CORE
    assert own_imports(path.read_text()) - allowed == set(), f"expected only {sorted(allowed)}"


@pytest.mark.parametrize(
    "line",
    [
        "from handlers.models.dssm import DSSM",
        "from handlers.models import dssm",
        "from .dssm import DSSM",
        "from . import dssm",
        "import handlers.models.dssm",
        "def f():\n    from handlers.models import dssm",
    ],
)
def test_every_way_to_import_a_model_is_found(line: str) -> None:
    assert own_imports(line) == {"handlers.models.dssm"}
