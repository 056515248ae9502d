"""The verdict on a comparison, and the archives that it is about."""

from __future__ import annotations

import math
from pathlib import Path

from archive import catalog, package
from archive.files import digest
from archive.gate.report import Page
from archive.registry.documents import JudgedMetric, RegistryError, Verdict, now, whoami
from archive.registry.store import Registry
from training.artifacts import ArtifactError


def verdict_on(page: Page, reference: str) -> Verdict:
    """Return the verdict that a report shows.

    Args:
        page: The report.
        reference: The version that the new one was compared with; empty for the baselines.
    """
    comparison = page.comparison
    metrics = {}
    for change in comparison.changes:
        limit = comparison.limits.get(change.metric)
        old, new, margin = map(_finite, (change.old, change.new, change.margin))
        metrics[change.metric] = JudgedMetric(
            old,
            new,
            margin,
            limit=_finite(limit.value) if limit else None,
            is_least=limit.is_least if limit else None,
        )
    return Verdict(
        passed=not comparison.failures,
        reference=reference or "baselines",
        failures=comparison.failures,
        metrics=metrics,
        data_sha256=page.evaluation.data_sha256,
        judged_as=page.model,
        judged_by=whoami(),
        judged_at=now(),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def archives_of_run(
    registry: Registry, model: catalog.Model, version: str, sha256: str, places: package.Config
) -> dict[str, str]:
    """Return the sha256 of each archive of a training run, by model.

    Packaging gives the same bytes each time, so these are the archives that ``register`` stores.

    Args:
        registry: The registry; it is asked first.
        model: The model that was judged.
        version: Its version.
        sha256: Its archive.
        places: Where to package the others.

    Raises:
        ArchiveError: If one of the others computes something else than training did.
    """
    archives = {model.name: sha256}
    for name in catalog.model_names():
        other = catalog.get(name)
        if name == model.name or other.artifacts != model.artifacts:
            continue
        try:
            archives[name] = registry.entry(name, version).sha256
        except RegistryError:
            try:
                mar: Path = package.package(other, version, places)
            except ArtifactError:  # the artifacts are gone: there is nothing to register
                continue
            archives[name] = digest(mar)
    return dict(sorted(archives.items()))
