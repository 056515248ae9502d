"""Package trained models: ``python -m archive.package``.

``artifacts/<model>/<version>/`` becomes ``model-store/<model>.mar``, which holds what the handler
needs and nothing else of the repository. The same inputs give the same bytes.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tyro
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging_utils import ModelExportUtils
from rich.progress import track

from archive import catalog
from archive.files import replacing, scratch_folder
from handlers import logs
from handlers.errors import ArchiveError, UserError
from handlers.signature import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    SIGNED_FILE,
    Signature,
    sha256,
)
from serving import signing
from serving.archive_file import SAMPLE_FILE, ArchiveFile
from training import artifacts

logger = logging.getLogger(__name__)

MODEL_STORE = Path("model-store")
# Endings of the files that training writes for others than the handler.
NOT_SHIPPED = (".png", GOLDEN_FILE, artifacts.VECTORS_FILE, artifacts.IDS_FILE)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can hold


@dataclass(frozen=True)
class Config:
    """Package trained models into archives that TorchServe can serve.

    Attributes:
        model: Names separated by commas; all models by default.
        version: Version to package; by default the newest of each model.
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
        model: The model to package.
        version: The version to package; the newest if None.
        config: The folders to read from and to write to.

    Returns:
        The ``.mar``, which appears whole or not at all.

    Raises:
        ArtifactError: If there is nothing to package, or a file is missing or altered.
        ArchiveError: If the handler does not know the architecture, or computes something else
            than training did.
    """
    folder = artifacts.find(model.artifacts, version, config.artifacts_dir)
    handler = _load_and_prove(model, folder)
    mar = config.store / f"{model.name}.mar"
    with scratch_folder("package") as scratch:
        stage = scratch / "stage"
        _stage(model, folder, handler, stage)
        packed = _archive(model, handler.meta["model_version"], stage, scratch)
        with replacing(mar) as part:
            _rewrite(packed, part)
            ArchiveFile.read(part, model.name)
    return mar


def _load_and_prove(model: catalog.Model, folder: Path) -> Any:
    """Load the artifacts with the handler that will serve them, and replay the golden rows."""
    module = importlib.import_module(f"handlers.{model.handler_path.stem}")
    # TorchServe looks for the handler in the same way: the one class that the file defines.
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
    """Lay out the content of the archive, all but its manifest."""
    shutil.copytree(
        catalog.ROOT / "handlers",
        stage / "handlers",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in folder.iterdir():
        if not path.name.endswith(NOT_SHIPPED):
            shutil.copy(path, stage)
    shutil.copy(model.handler_path, stage)
    shutil.copy(model.config_path, stage)
    shutil.copy(folder / model.golden_file, stage / GOLDEN_FILE)
    golden = json.loads((stage / GOLDEN_FILE).read_text())
    (stage / SAMPLE_FILE).write_text(json.dumps({"data": golden["rows"][1:2]}))
    staged = [path for path in stage.rglob("*") if path.is_file()]
    files = {path.relative_to(stage).as_posix(): sha256(path.read_bytes()) for path in staged}
    signature = Signature(
        model_name=model.name,
        model_version=handler.meta["model_version"],
        handler=model.handler_path.name,
        features=handler.describe_features(),
        output=_output(golden["predictions"][0], handler.meta.get("prediction", "")),
        libraries=handler.meta["libraries"],
        files=dict(sorted(files.items())),
        space_id=handler.meta.get("space_id"),
        collection=model.index.collection if model.index else None,
    )
    artifacts.write_json(stage / SIGNATURE_FILE, signature.to_json())


def _archive(model: catalog.Model, version: str, stage: Path, target: Path) -> Path:
    """Let TorchServe's archiver add the manifest and pack the staged files.

    Its entry point, ``generate_model_archive``, would first copy the files to a folder that two
    runs on one machine share, ``<temporary folder>/<model>``; these are the two steps after that.

    Returns:
        The ``.mar`` in the folder ``target``.
    """
    manifest = ModelExportUtils.generate_manifest_json(
        ModelArchiverConfig(
            model_name=model.name,
            handler=str(model.handler_path),
            version=version,
            extra_files=str(stage),
            config_file=str(model.config_path),
            export_path=str(target),
        )
    )
    ModelExportUtils.archive(str(target), model.name, str(stage), manifest)
    return target / f"{model.name}.mar"


def _output(prediction: Any, meaning: str) -> dict[str, Any]:
    """Describe a prediction, given a golden one and what the meta file says it means."""
    if isinstance(prediction, dict):
        return {"type": "object", "keys": list(prediction)}
    if isinstance(prediction, list):
        return {"type": "vector", "length": len(prediction)}
    return {"type": "number"} | ({"meaning": meaning} if meaning else {})


def with_config(mar: Path, config: str, target: Path) -> None:
    """Copy an archive and change its settings.

    Args:
        mar: The archive.
        config: Text of the new ``model-config.yaml``.
        target: Path of the copy; must not be the archive itself.
    """
    with zipfile.ZipFile(mar) as archive:
        signature = json.loads(archive.read(SIGNATURE_FILE))
    signature["files"][catalog.CONFIG_FILE] = sha256(config.encode())
    changes = {catalog.CONFIG_FILE: config, SIGNATURE_FILE: json.dumps(signature)}
    _rewrite(mar, target, {name: text.encode() for name, text in changes.items()})


def _rewrite(
    source: Path, target: Path, changes: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """Copy an archive, sorted by name and without times, and sign it if there is a key.

    The same content gives the same bytes.
    """
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        manifest = json.loads(old.read(MANIFEST_FILE))
        manifest["createdOn"] = "01/01/1980 00:00:00"
        changed = {**changes, MANIFEST_FILE: json.dumps(manifest, indent=2).encode()}
        described = changed.get(SIGNATURE_FILE) or old.read(SIGNATURE_FILE)
        names = {*old.namelist()} - {SIGNED_FILE}
        if signed := signing.sign(described, changed[MANIFEST_FILE], os.environ):
            changed[SIGNED_FILE] = signed
        for name in sorted(names | changed.keys()):
            data = changed.get(name) or old.read(name)
            new.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    logs.to_stderr(logging.WARNING)
    logging.getLogger("ts").setLevel(logging.ERROR)  # TorchServe warns of missing accelerators
    names = config.model.split(",") if config.model else catalog.model_names()
    try:
        for name in track(names, "packaging", transient=True, disable=not sys.stderr.isatty()):
            mar = package(catalog.get(name), config.version or None, config)
            print(f"{mar}  {mar.stat().st_size:,} bytes  sha256 {sha256(mar.read_bytes())[:16]}")
    except (UserError, OSError) as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
