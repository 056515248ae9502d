"""Package trained models: ``python -m archive.package``.

``artifacts/<model>/<version>/`` -> ``model-store/<model>.mar``, with all that the handler needs and
nothing else of the repository. The same inputs give the same bytes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import tyro
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging import generate_model_archive
from rich.progress import track

from archive import catalog
from handlers import logs
from handlers.errors import ArchiveError
from handlers.signature import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    Signature,
    sha256,
    verify_archive,
)
from training import artifacts

logger = logging.getLogger(__name__)

MODEL_STORE = Path("model-store")
SAMPLE_FILE = "sample_request.json"
# Endings of what training writes for others than the handler.
NOT_SHIPPED = (".png", GOLDEN_FILE, artifacts.VECTORS_FILE, artifacts.IDS_FILE)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


@dataclass(frozen=True)
class Config:
    """Package trained models into archives that TorchServe can serve.

    Attributes:
        model: Names separated by commas; all models by default.
        version: The newest of each model by default.
        store: Folder that the archives go to.
        artifacts_dir: Folder that training wrote to.
    """

    model: str = ""
    version: str = ""
    store: Path = MODEL_STORE
    artifacts_dir: Path = artifacts.ARTIFACTS


def package(model: catalog.Model, version: str | None, config: Config) -> Path:
    """Package one model.

    Args:
        model: What to package.
        version: The newest when None.
        config: Folders to read and to write.

    Returns:
        The ``.mar``, which appears whole or not at all.

    Raises:
        ArtifactError: If there is nothing to package, or a file is missing or altered.
        ArchiveError: If the handler does not know the architecture, or computes something else
            than training did.
    """
    folder = artifacts.find(model.artifacts, version, config.artifacts_dir)
    handler = _load_and_prove(model, folder)
    config.store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recmar-package-") as scratch:
        stage = Path(scratch) / "stage"
        _stage(model, folder, handler, stage)
        # The archiver works in <temporary folder>/<model>, and deletes what it finds there.
        with mock.patch.object(tempfile, "tempdir", scratch):
            generate_model_archive(
                ModelArchiverConfig(
                    model_name=model.name,
                    handler=str(model.handler_path),
                    version=handler.meta["model_version"],
                    extra_files=str(stage),
                    config_file=str(model.config_path),
                    export_path=scratch,
                )
            )
        finished = config.store / f".{model.name}.mar.part"
        _rewrite(Path(scratch) / f"{model.name}.mar", finished)
        verify_archive(finished)
        mar = config.store / f"{model.name}.mar"
        os.replace(finished, mar)
    return mar


def _load_and_prove(model: catalog.Model, folder: Path) -> Any:
    """Load the artifacts with the handler that will serve them, and replay the golden rows."""
    module = importlib.import_module(f"handlers.{model.handler_path.stem}")
    # TorchServe goes by the same rule: the one class that the file defines.
    [handler_class] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    handler = handler_class()
    try:
        handler.load(folder, model.handler_config)
        handler.replay_golden_rows(folder / model.golden_file)
    except ArchiveError as error:
        raise ArchiveError(f"{folder}: {error}; run: make train MODEL={model.artifacts}") from error
    return handler


def _stage(model: catalog.Model, folder: Path, handler: Any, stage: Path) -> None:
    """Lay out what goes into the archive beside the handler and the config."""
    shutil.copytree(
        catalog.ROOT / "handlers",
        stage / "handlers",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in folder.iterdir():
        if not path.name.endswith(NOT_SHIPPED):
            shutil.copy(path, stage)
    shutil.copy(folder / model.golden_file, stage / GOLDEN_FILE)
    golden = json.loads((stage / GOLDEN_FILE).read_text())
    (stage / SAMPLE_FILE).write_text(json.dumps({"data": golden["rows"][1:2]}))
    listed = [p for p in stage.rglob("*") if p.is_file()]
    files = {p.relative_to(stage).as_posix(): sha256(p.read_bytes()) for p in listed}
    for path in (model.handler_path, model.config_path):
        files[path.name] = sha256(path.read_bytes())
    signature = Signature(
        model_name=model.name,
        model_version=handler.meta["model_version"],
        handler=model.handler_path.name,
        features=handler.describe_features(),
        output=_output(golden["predictions"][0]),
        libraries=handler.meta["libraries"],
        files=dict(sorted(files.items())),
        space_id=handler.meta.get("space_id"),
        collection=model.index.collection if model.index else None,
    )
    artifacts.write_json(stage / SIGNATURE_FILE, signature.to_json())


def _output(prediction: Any) -> dict[str, Any]:
    """What one prediction looks like, told from a golden one."""
    if isinstance(prediction, dict):
        return {"type": "object", "keys": list(prediction)}
    if isinstance(prediction, list):
        return {"type": "vector", "length": len(prediction)}
    return {"type": "number"}


def with_config(mar: Path, config: str, target: Path) -> None:
    """Copy an archive with other settings.

    Args:
        mar: The archive.
        config: The text of its new ``model-config.yaml``.
        target: The copy, not the archive itself.
    """
    with zipfile.ZipFile(mar) as archive:
        signature = json.loads(archive.read(SIGNATURE_FILE))
    signature["files"][catalog.CONFIG_FILE] = sha256(config.encode())
    changes = {catalog.CONFIG_FILE: config, SIGNATURE_FILE: json.dumps(signature)}
    _rewrite(mar, target, {name: text.encode() for name, text in changes.items()})


def _rewrite(
    source: Path, target: Path, changes: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Copy a zip sorted by name and without times, so that the same content has the same sha256."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in sorted(old.namelist()):
            data = changes.get(name) or old.read(name)
            if name == MANIFEST_FILE:
                manifest = json.loads(data)
                manifest["createdOn"] = "01/01/1980 00:00:00"
                data = json.dumps(manifest, indent=2).encode()
            new.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # it misses accelerators at import
    names = config.model.split(",") if config.model else catalog.model_names()
    try:
        for name in track(names, "packaging", transient=True, disable=not sys.stderr.isatty()):
            mar = package(catalog.get(name), config.version or None, config)
            print(f"{mar}  {mar.stat().st_size:,} bytes  sha256 {sha256(mar.read_bytes())[:16]}")
    except (artifacts.ArtifactError, ArchiveError, catalog.UnknownModelError) as error:
        logger.error("%s", error)
        return 1
    except OSError as error:
        logger.error("%s: %s", config.store, error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
