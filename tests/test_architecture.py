"""The page on the architecture is what the code does."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import orjson
import pytest

from archive import catalog, package
from archive.registry.store import Registry
from tests.examples import Example, load_handler, train
from tests.examples.deepfm import DEFAULT as DEEPFM

PAGE = (catalog.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def steps(heading: str, which: int = 0) -> list[str]:
    """Return the dotted names of a numbered list below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    names = re.findall(r"^(\d+)\. `([\w.]+)`", section, re.MULTILINE)
    starts = [i for i, (number, _) in enumerate(names) if number == "1"] + [len(names)]
    return [name for _, name in names[starts[which] : starts[which + 1]]]


ALL_STEPS = re.findall(r"^\d+\. `([\w.]+)`", PAGE, re.MULTILINE)


def resolve(name: str) -> Callable[..., Any]:
    """Return the function that a dotted name stands for."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return inspect.unwrap(found)  # type: ignore[no-any-return]
    raise AssertionError(f"no such module: {name}")


@contextmanager
def first_calls(names: list[str]) -> Iterator[list[str]]:
    """Record the order in which functions are first called while the block runs."""
    by_code: dict[CodeType, str] = {resolve(name).__code__: name for name in names}
    called: list[str] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (name := by_code.pop(frame.f_code, None)):
            called.append(name)

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("name", ALL_STEPS)
def test_every_step_is_a_function(name: str) -> None:
    assert callable(resolve(name))


def test_a_request_takes_the_steps_in_order(
    artifact_folder: Callable[[Example], Path],
) -> None:
    handler = load_handler(DEEPFM.model, artifact_folder(DEEPFM))
    # TorchServe calls the first step, and its metrics are those of a worker.
    expected = steps("The way of a request")[1:-1]
    with first_calls(expected) as called:
        handler.answer([orjson.dumps({"data": DEEPFM.rows})])
    assert called == expected


def test_a_training_row_takes_the_steps_in_order(
    data_folder: Callable[[Example], Path], tmp_path: Path
) -> None:
    expected = steps("The way of a training row")
    places = ["--data-path", str(data_folder(DEEPFM)), "--artifacts-dir", str(tmp_path)]
    with first_calls(expected) as called:
        assert train(DEEPFM.model, *DEEPFM.arguments, *places, "--version", "v1") == 0
    assert called == expected


def test_a_version_takes_the_steps_in_order(
    artifact_folder: Callable[[Example], Path], tmp_path: Path
) -> None:
    folder = artifact_folder(DEEPFM)
    expected = steps("The way of a version")
    places = package.Config(store=tmp_path / "store", artifacts_dir=folder.parents[1])
    registry = Registry(tmp_path / "registry")
    with first_calls(expected) as called:
        mar = package.package(catalog.get(DEEPFM.model), folder.name, places)
        registry.register(DEEPFM.model, folder.name, mar)
        registry.fetch(DEEPFM.model, folder.name, tmp_path / "other-store")
    assert called == expected


def test_every_folder_of_the_tree_is_there() -> None:
    tree = PAGE.partition("## The tree\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([\w/]+)/` \|", tree, re.MULTILINE)
    assert [name for name in named if not (catalog.ROOT / name).is_dir()] == []
    packages = {path.parent.name for path in catalog.ROOT.glob("*/__init__.py")}
    assert packages <= set(named)
