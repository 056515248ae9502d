"""A registry, and archives to register."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from archive.registry.store import Registry
from serving.testing import make_archive

CONFIG = "minWorkers: 1\nmaxWorkers: 1\n"


@pytest.fixture
def make_mar(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that makes an archive of the model m in a folder of its own."""

    def make(version: str, folder: str = "", note: str = "") -> Path:
        parent = tmp_path / (folder or version)
        parent.mkdir(parents=True, exist_ok=True)
        return make_archive(parent, "m", f"# {note}", version=version, config=CONFIG)

    return make


@pytest.fixture
def mars(make_mar: Callable[..., Path]) -> dict[str, Path]:
    """Archives of one model by version."""
    return {version: make_mar(version) for version in ("v1", "v2", "v3", "v4")}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry without versions."""
    return Registry(tmp_path / "registry")
