"""What the instance on this machine serves."""

from __future__ import annotations

import asyncio

from serving import run_folder
from serving.client import TorchServe
from serving.model_version import ModelVersion
from serving.settings import Settings


def versions_here(settings: Settings, model: str) -> list[ModelVersion] | None:
    """Ask the instance on this machine for the versions of a model.

    Returns:
        The versions, the default one first; None if no instance is running.

    Raises:
        TorchServeError: If the instance does not answer.
    """
    if run_folder.owner(settings.run_folder) is None:
        return None
    return asyncio.run(_versions(settings, model))


async def _versions(settings: Settings, model: str) -> list[ModelVersion]:
    async with TorchServe.on_this_machine(settings) as torchserve:
        return await torchserve.versions(model)
