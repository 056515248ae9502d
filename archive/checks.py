"""Checks of the archives and artifacts of the enabled models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from archive import catalog
from handlers.errors import UserError
from handlers.signature import GOLDEN_FILE, sha256
from serving.archive_file import ArchiveFile
from serving.checks import Finding, Machine
from training import artifacts


def archives(machine: Machine) -> Iterator[Finding]:
    """Find archives that are missing, damaged or outdated."""
    known, store = catalog.model_names(), machine.settings.model_store
    stale: dict[str, list[str]] = {}  # archives by how they differ
    for name in machine.models:
        mar = store / f"{name}.mar"
        if not mar.exists():
            train = f"make train archive MODEL={name}"
            fix = train if name in known else f"choose from {', '.join(known)}"
            yield Finding(f"{mar} is missing", fix)
            continue
        try:
            archive = ArchiveFile.read(mar, name)
        except UserError as error:
            yield Finding.from_error(error)
            continue
        if name in known:
            differences = list(outdated(archive, catalog.get(name), machine.artifacts_dir))
            if differences:
                stale.setdefault(", ".join(differences), []).append(f"{name} {archive.version}")
    if stale:
        listed = "; ".join(f"{', '.join(names)}: {text}" for text, names in stale.items())
        yield Finding(
            f"{store} has outdated archives: {listed}",
            "make archive, or deploy newer versions",
            fatal=False,
        )


def outdated(archive: ArchiveFile, model: catalog.Model, artifacts_dir: Path) -> Iterator[str]:
    """Yield the differences between an archive and what would be packaged now."""
    signature, version = archive.signature, archive.version
    if archive.config != model.config:
        yield f"archive/{model.name}/{catalog.CONFIG_FILE} was edited"
    sources = {
        name: catalog.ROOT / name
        for name in signature.files
        if name.startswith("handlers/") and not name.endswith("_handler.py")
    }
    sources[signature.handler] = model.handler_path
    changed = [name for name, path in sources.items() if _sha256(path) != signature.files[name]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield f"{changed[0]}{more} changed"
    versions = artifacts.versions(model.artifacts, artifacts_dir)
    folder = artifacts_dir / model.artifacts
    if versions and version != versions[-1]:
        yield f"{folder} has the newer {versions[-1]}"
    if version in versions:
        # A run of several models has golden rows of each of them.
        for name in sorted(signature.files.keys() - {GOLDEN_FILE}):
            path = folder / version / name
            if path.is_file() and _sha256(path) != signature.files[name]:
                yield f"{path} differs"


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()) if path.is_file() else ""


def artifact_folders(machine: Machine) -> Iterator[Finding]:
    """Find incomplete folders among the newest artifacts of the enabled models."""
    known = catalog.model_names()
    runs = dict.fromkeys(catalog.get(name).artifacts for name in machine.models if name in known)
    for run in runs:
        if artifacts.versions(run, machine.artifacts_dir):
            try:
                artifacts.find(run, root=machine.artifacts_dir)
            except artifacts.ArtifactError as error:
                yield Finding.from_error(error)
