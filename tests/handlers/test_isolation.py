"""An archive is self-contained: its handler loads in a process that cannot see the repository."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archive import catalog
from serving.testing import ROOT
from tests.examples import Example, model_names, module

# Installed for every worker.
SHARED_LIBRARIES = {"msgspec", "numpy", "orjson", "torch", "ts"}
# Each takes tens of megabytes in a worker, or is not installed where archives are served.
FORBIDDEN_LIBRARIES = {"matplotlib", "pandas", "pyarrow", "requests", "rich", "sklearn", "tyro"}

# Like a TorchServe worker, which puts the folder first in sys.path.
LOAD = """
import json, sys
from pathlib import Path

folder, handler_file = sys.argv[1:]
sys.path.insert(0, folder)
import ts
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import TsModelLoader

metrics = MetricsCacheYamlImpl(Path(ts.__file__).with_name("configs") / "metrics.yaml")
metrics.initialize_cache()
service = TsModelLoader().load("model", folder, handler_file, None, 1, metrics_cache=metrics)
handler = service._entry_point.__self__
[(status, body)], _ = handler.answer([Path(folder, "sample_request.json").read_bytes()])
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
print(json.dumps({"status": status, "body": body.decode(), "files": files}))
"""


@pytest.fixture(params=[module(model).EXAMPLES[0] for model in model_names()], ids=str)
def example(request: pytest.FixtureRequest) -> Example:
    """The first example of each model."""
    found: Example = request.param
    return found


@pytest.fixture
def folder(example: Example, archive_file: Callable[[Example], Path], tmp_path: Path) -> Path:
    """The unpacked archive."""
    with zipfile.ZipFile(archive_file(example)) as archive:
        archive.extractall(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def loaded(example: Example, folder: Path) -> Any:
    """Report of a process that sees only the unpacked archive."""
    handler_file = catalog.get(example.model).handler_path.name
    command = [sys.executable, "-I", "-c", LOAD, str(folder), handler_file]
    result = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_unpacked_archive_serves_without_the_repository(
    example: Example, folder: Path, loaded: Any
) -> None:
    assert loaded["status"] == 200, loaded["body"]
    files = {name: Path(file) for name, file in loaded["files"].items() if file}
    own = {name for name, file in files.items() if file.is_relative_to(folder)}
    assert {"handlers.base", catalog.get(example.model).handler_path.stem} <= own
    installed = Path(sys.prefix)
    foreign = [
        name
        for name, file in files.items()
        if file.is_relative_to(ROOT) and not file.is_relative_to(installed)
    ]
    assert foreign == []

    libraries = {name.partition(".")[0] for name in loaded["files"]}
    assert libraries & FORBIDDEN_LIBRARIES == set()
    known = {"handlers", *sys.stdlib_module_names}
    imported = {library for name in own for library in imports(files[name])} - known
    assert imported <= SHARED_LIBRARIES | example.libraries


def imports(source: Path) -> Iterator[str]:
    """Yield the top-level names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]
