"""The registry and the model stores before, during and after a deploy."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from archive.registry.documents import RegistryError
from archive.registry.store import Registry
from serving.archive_file import ArchiveFile
from serving.model_store import (
    SCRATCH,
    find_kept,
    kept_path,
    remove_staged,
    replaced,
    staged_path,
)
from serving.rollout import RolloutError

logger = logging.getLogger(__name__)


def adopt(registry: Registry, model: str, version: str, store: Path) -> None:
    """Register a version that serves although it never was, as the champion that it is.

    Args:
        registry: The registry.
        model: Name of the model.
        version: The version that serves.
        store: The model store that it was served from; if its archive is lost, nothing happens.
    """
    if registry.has(model, version):
        return
    mar = find_kept(store, model, version)
    if mar is not None:
        registry.register(model, version, mar, as_challenger=False)
        registry.promote(model, version)
        logger.info("%s: %s %s serves; registered it", store, model, version)


def way_back(registry: Registry, model: str, version: str, store: Path) -> ArchiveFile:
    """Return the archive of a version that serves.

    Args:
        registry: The registry.
        model: Name of the model.
        version: The version that serves.
        store: The model store that it was served from, locked.

    Raises:
        RolloutError: If neither the store nor the registry has it.
    """
    mar = find_kept(store, model, version)
    if mar is None:
        scratch = store / SCRATCH / "old"
        try:
            mar = registry.fetch(model, version, scratch)
        except RegistryError as error:
            raise RolloutError(
                f"{model} {version} serves, and there is no way back to it: {store} has no archive "
                f"of it, and {error}; copy it to {kept_path(store, model, version)}, or insist: "
                "--no-way-back"
            ) from error
    return ArchiveFile.read(mar, model)


@contextmanager
def staged(registry: Registry, model: str, version: str, store: Path) -> Iterator[None]:
    """Keep the archive in a store, as ``<model>-<version>.mar``, while the block runs."""
    # TorchServe loads archives from the store itself only; an unfinished copy must not lie there.
    scratch = store / SCRATCH
    mar = staged_path(store, model, version)
    try:
        logger.info("%s: fetch %s %s", store, model, version)
        try:
            remove_staged(store, model)
            os.replace(registry.fetch(model, version, scratch), mar)
        except (OSError, RegistryError) as error:
            raise RolloutError(f"{store}: fetch: {error}") from error
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        mar.unlink(missing_ok=True)


def commit(
    registry: Registry,
    model: str,
    version: str,
    *,
    olds: Sequence[str],
    stores: Sequence[Path],
    rollback: bool,
    ungated: str,
) -> None:
    """Make a version the one that the next start serves, and the registry's champion.

    Args:
        registry: The registry.
        model: Name of the model.
        version: The version, staged in the stores.
        olds: Versions that it replaces.
        stores: The model stores.
        rollback: Go back in the list of champions instead of adding to it.
        ungated: Reason to deploy it without a verdict of the gate; empty for none.

    Raises:
        RolloutError: If a store or the registry cannot be changed; the stores are as before.
    """
    try:
        if not rollback:
            for old in dict.fromkeys(olds):
                if registry.has(model, old):
                    registry.promote(model, old)
        with ExitStack() as undo:
            for store in stores:
                undo.enter_context(replaced(store, model, version))
            if rollback:
                registry.rollback(model)
            else:
                registry.promote(model, version, ungated)
    except (OSError, RegistryError) as error:
        raise RolloutError(f"commit: {error}") from error
