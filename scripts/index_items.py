"""Write item vectors to Milvus, or to a file: ``python -m scripts.index_items``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from pymilvus import MilvusException

from archive import catalog
from archive.item_vectors import ItemVectors, connect, write_to_file, write_to_milvus
from handlers import logs
from handlers.errors import UserError
from serving.here import versions_here
from serving.settings import Settings
from training import artifacts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Write the item vectors of trained models to Milvus, or to files.

    A stopped run continues where it was. The token of a server comes from MILVUS_TOKEN.

    Attributes:
        model: Names separated by commas; by default every model with an index.
        version: Version to read; by default the one that serves on this machine, or the newest
            if none does.
        uri: A file of Milvus Lite, or http://host:19530 of a server.
        format: Milvus, or the format of the files with ids and vectors.
        out: Folder of those files.
        batch_size: Number of vectors in a request.
        artifacts_dir: Folder that training wrote to.
    """

    model: str = ""
    version: str = ""
    uri: str = "data/milvus.db"
    format: Literal["milvus", "npy", "parquet", "json"] = "milvus"
    out: Path = Path("data/vectors")
    batch_size: int = 1000
    artifacts_dir: Path = artifacts.ARTIFACTS


def indexes(model_flag: str) -> dict[str, catalog.Index]:
    """Return the index of each training run; the towers of one run share their items.

    Args:
        model_flag: Names separated by commas; empty for all models.

    Raises:
        UserError: If there is no such model, or a model that was named has no index.
    """
    names = model_flag.split(",") if model_flag else catalog.model_names()
    models = [catalog.get(name) for name in names]
    if unindexed := [m.name for m in models if m.index is None and model_flag]:
        raise UserError(f"{', '.join(unindexed)}: has no index")
    return {m.artifacts: m.index for m in models if m.index is not None}


def choose_version(run: str, wanted: str) -> tuple[str | None, str]:
    """Choose the version whose towers answer callers: index and towers must be of one run.

    Args:
        run: The training run.
        wanted: The version that --version names; empty for none.

    Returns:
        The version, None for the newest, and why.

    Raises:
        UserError: If its towers serve different versions, or the instance does not answer.
    """
    if wanted:
        return wanted, "as --version says"
    settings = Settings.from_env(os.environ)
    place = f"on port {settings.inference_port}"
    served = {}
    for name in catalog.model_names():
        model = catalog.get(name)
        if model.artifacts != run or model.index is None:
            continue
        if versions := versions_here(settings, name):
            served[name] = versions[0].version
    if not served:
        return None, f"the newest, because none serves {place}"
    if len(set(served.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in served.items())
        raise UserError(f"{listed} serve {place}: choose one, --version")
    [version] = set(served.values())
    return version, f"which serves {place}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    logs.to_stderr(logging.WARNING)
    if config.batch_size < 1:
        logger.error("--batch-size %d: expected 1 or more", config.batch_size)
        return 2
    try:
        by_run = indexes(config.model)
        with connect(config.uri) if config.format == "milvus" else nullcontext() as client:
            for run, index in by_run.items():
                version, reason = choose_version(run, config.version)
                folder = artifacts.find(run, version, config.artifacts_dir)
                items = ItemVectors.load(folder)
                print(f"{run} {folder.name}, {reason}", flush=True)
                if client is not None:
                    name = write_to_milvus(client, index, items, config.batch_size)
                    print(f"{index.collection} -> {name}: {len(items.ids):,} items")
                else:
                    path = config.out / f"{index.collection}.{config.format}"
                    write_to_file(items, path, config.batch_size)
                    print(f"{path}: {len(items.ids):,} items, space {items.space_id}")
    except (UserError, OSError, MilvusException) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted; run it again to continue")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
