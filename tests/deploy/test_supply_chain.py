"""The image installs the versions of constraints.txt, with hashes, and every package it needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from serving.testing import ROOT

SHIPPED = ROOT / "deploy" / "requirements.txt"


def pins(text: str) -> dict[str, str]:
    """Return the pinned versions by name."""
    found = re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def needed(requirements: list[str], seen: set[str]) -> Iterator[str]:
    """Yield the names of packages and of their dependencies, as installed here."""
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        marker = requirement.marker
        if (marker is None or marker.evaluate({"extra": ""})) and str(requirement) not in seen:
            seen.add(str(requirement))
            yield name
            for each in metadata.requires(name) or []:
                parsed = Requirement(each)
                if parsed.marker is None or any(
                    parsed.marker.evaluate({"extra": extra}) for extra in extras
                ):
                    parsed.marker = None
                    yield from needed([str(parsed)], seen)


def test_the_image_installs_the_versions_of_constraints() -> None:
    shipped, constraints = pins(SHIPPED.read_text()), pins((ROOT / "constraints.txt").read_text())
    assert shipped.keys() - constraints.keys() == {"setuptools", "wheel"}  # part of every venv
    differing = {
        name: (version, constraints[name])
        for name, version in shipped.items()
        if name in constraints and Version(version).public != constraints[name]
    }
    assert differing == {}, "run: make lock"
    assert shipped["torch"].endswith("+cpu")


def test_every_package_of_the_image_has_a_hash() -> None:
    entries = re.split(r"\n(?=\S)", SHIPPED.read_text())
    assert [entry for entry in entries if "==" in entry and "--hash=sha256:" not in entry] == []


def test_the_image_has_every_package_that_pyproject_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["otel"]]
    missing = set(needed(wanted, set())) - pins(SHIPPED.read_text()).keys()
    assert missing == set(), "run: make lock"


def test_commands_without_an_extra_import_no_package_of_an_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = set(needed(project["dependencies"], set()))
    absent = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not plain & set(map(canonicalize_name, owners)) and not (ROOT / module).exists()
    ]
    recipes = re.findall(
        r"^[\w-]+: \$\(VENV\)/\.installed .*\n((?:\t.*\n)+)",
        (ROOT / "Makefile").read_text(),
        re.MULTILINE,
    )
    commands = re.findall(r"-m ([\w.]+)", "".join(recipes))
    assert {"scripts.serve", "bench.serving", "bench.soak"} <= set(commands)
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); import {', '.join(commands)}"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
