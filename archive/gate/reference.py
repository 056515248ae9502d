"""What a new version is compared with: what serves, the champion, or the baselines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from archive.registry.documents import CHAMPION
from archive.registry.store import Registry
from handlers.errors import UserError
from serving.client import TorchServeError
from serving.here import versions_here
from serving.model_store import find_kept, kept_path
from serving.settings import Settings


@dataclass(frozen=True)
class Reference:
    """What a new version is compared with.

    Attributes:
        version: The version; empty for the baselines.
        reason: Why this one.
        mar: Its archive; None if the registry or its artifacts have it.
    """

    version: str
    reason: str
    mar: Path | None = None


def choose_reference(registry: Registry, model: str, new: str) -> Reference:
    """Choose what callers get today: the version that serves here, or the registry's champion.

    Args:
        registry: The registry.
        model: Name of the model.
        new: The version to judge.

    Raises:
        UserError: If a version serves here, but it is not known which, or its archive is lost.
    """
    settings = Settings.from_env(os.environ)
    champion = registry.aliases(model).get(CHAMPION, "")
    port = f"port {settings.inference_port} of this machine"
    try:
        versions = versions_here(settings, model)
    except TorchServeError as error:
        if not champion:
            raise UserError(
                f"the instance on {port} does not say which {model} serves: {error}; "
                "wait until it does, or name a version: --current-version"
            ) from error
        return Reference(
            champion,
            f"{champion} is the champion; the instance on {port} does not say what serves: {error}",
        )
    served = versions[0].version if versions else ""
    if served in ("", new):  # before it replaced the champion, the new version was judged by that
        if champion:
            return Reference(champion, f"{champion} is the registry's champion")
        serves = f"{new} itself serves" if served else "nothing serves"
        return Reference(
            "", f"the baselines, because the registry has no champion and {serves} on {port}"
        )
    reason = f"{served} serves on {port}"
    if champion and champion != served:
        reason += (
            f", though the registry's champion is {champion}; to compare with that: "
            f"--current-version {champion}"
        )
    mar = find_kept(settings.model_store, model, served)
    if mar is None and not registry.has(model, served):
        kept = kept_path(settings.model_store, model, served)
        raise UserError(
            f"{model} {reason}; its archive is neither {settings.model_store / model}.mar nor "
            f"{kept} nor registered; copy it to {kept}, or name a version: --current-version"
        )
    return Reference(served, reason, mar)
