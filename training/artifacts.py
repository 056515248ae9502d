"""Artifact folders, ``artifacts/<model>/<version>/``: what a training run leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from handlers.errors import UserError
from handlers.schema import SCHEMA_VERSION
from handlers.signature import library_versions, sha256

ARTIFACTS = Path("artifacts")
META_PATTERN = "*_meta.json"
VECTORS_FILE = "item_vectors.npy"
IDS_FILE = "item_ids.json"


class ArtifactError(UserError):
    """An artifact folder is missing or unusable; the message says what to do."""


def new_version() -> str:
    """Return the UTC time, such as 20261120093000, so that versions sort by age."""
    return datetime.now(UTC).strftime("%Y%m%d%H%M%S")


def check_version(version: str) -> str:
    """Return ``version`` if it can stand in a URL and a file name.

    Raises:
        ArtifactError: If it has another character.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", version):
        raise ArtifactError(f"--version {version!r}: expected letters, digits, '.', '_' and '-'")
    return version


def versions(model: str, root: Path = ARTIFACTS) -> list[str]:
    """List the versions of a model, oldest first."""
    folders = [p for p in (root / model).glob("*") if p.is_dir() and not p.name.startswith(".")]
    return [p.name for p in sorted(folders, key=lambda p: (p.stat().st_mtime, p.name))]


def find(model: str, version: str | None = None, root: Path = ARTIFACTS) -> Path:
    """Return the folder of a version, by default the newest, checked against its meta file.

    Raises:
        ArtifactError: If there is no such version, or a file is missing or was altered.
    """
    known = versions(model, root)
    if not known:
        raise ArtifactError(f"{root / model} has no version; run: make train MODEL={model}")
    version = version or known[-1]
    if version not in known:
        raise ArtifactError(
            f"{root / model} has no version {version}; it has {', '.join(known)}; "
            f"run: make train MODEL={model} VERSION={version}"
        )
    folder = root / model / version
    check_files(folder, f"run: rm -r {folder}; make train MODEL={model} VERSION={version}")
    return folder


def check_files(folder: Path, advice: str) -> None:
    """Check the files of an artifact folder against its meta file.

    Args:
        folder: The folder.
        advice: What to do if a file is not what training wrote.

    Raises:
        ArtifactError: If a file is missing or was altered.
    """
    for name, expected in read_meta(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            problem = "is missing"
        elif sha256(path.read_bytes()) != expected:
            problem = "was altered after training"
        else:
            continue
        raise ArtifactError(f"{folder}: {name} {problem}; {advice}")


def read_meta(folder: Path) -> dict[str, Any]:
    """Read the meta file of an artifact folder.

    Raises:
        ArtifactError: If there is not exactly one, or it is not JSON.
    """
    paths = sorted(folder.glob(META_PATTERN))
    if len(paths) != 1:
        raise ArtifactError(f"{folder}: expected one {META_PATTERN}, got {len(paths)}; train again")
    try:
        meta: dict[str, Any] = json.loads(paths[0].read_text())
    except ValueError as error:
        raise ArtifactError(f"{paths[0]} is not JSON: {error}; train again") from error
    return meta


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; numpy arrays and paths are converted, NaN is an error."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    path.write_text(text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_meta(path: Path, meta: Mapping[str, Any], libraries: Sequence[str] = ()) -> None:
    """Write the meta file. It must come last, since it lists the hash of every other file.

    Args:
        path: The file that the model's handler reads.
        meta: Entries of the model, ``arch_version`` and ``model_version`` among them.
        libraries: Distributions that the model needs in addition to those of every handler.
    """
    files = {p.name: sha256(p.read_bytes()) for p in sorted(path.parent.iterdir())}
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            **meta,
            "libraries": library_versions(libraries),
            "git_sha": _git_sha(),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
        },
    )


def _git_sha() -> str | None:
    """Return the commit of this code; None outside a checkout if GIT_SHA is not set."""
    if recorded := os.environ.get("GIT_SHA"):  # in an image
        return recorded
    if shutil.which("git") is None:
        return None
    result = subprocess.run(
        ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None


def space_id(weights: bytes, features: Any) -> str:
    """Return the name of a network's embedding space: vectors of two spaces do not compare.

    Args:
        weights: Content of the weights file.
        features: Inputs of the network as in the meta file.

    Returns:
        16 hexadecimal digits.
    """
    schema = json.dumps(features, sort_keys=True).encode()
    return hashlib.sha256(weights + schema).hexdigest()[:16]


def save_item_vectors(folder: Path, ids: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
    """Write item vectors, float32 [N, D], and the ids of the items in the same order."""
    np.save(folder / VECTORS_FILE, vectors, allow_pickle=False)
    (folder / IDS_FILE).write_text(json.dumps(list(ids)))
