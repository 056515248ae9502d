"""The routes for load balancers, supervisors and Prometheus."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

from fastapi import HTTPException, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.client import TorchServeError
from serving.model_version import ModelVersion
from sidecar.http.json_route import OrjsonResponse
from sidecar.http.state import Shared, State, new_router
from sidecar.translate import ROUTES

router = new_router("probes")


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is for one of these routes."""
    return scope.get("path") in ("/ping", "/health", "/metrics")


@router.get("/ping")
async def ping(shared: Shared) -> Response:
    """Check that each enabled model of the routes has a worker that answers."""
    models = [model for model in ROUTES.values() if model in shared.models] or shared.models
    await _check(shared, models, lambda version, silent: version.ready_workers > silent)
    return OrjsonResponse({"status": "Healthy"})


@router.get("/health")
async def health(shared: Shared) -> Response:
    """Check that all workers of each enabled model answer; list mismatches with the item index."""
    await _check(shared, shared.models, lambda version, silent: version.ready and not silent)
    index = {} if shared.index_mismatches is None else {"index": shared.index_mismatches}
    return OrjsonResponse({"status": "Healthy", **index})


async def _check(
    shared: State, models: Sequence[str], enough: Callable[[ModelVersion, int], bool]
) -> None:
    reasons = []
    for model, version in (await shared.default_versions(models)).items():
        silent = [] if version is None else shared.workers.silent(version)
        if version is None or not enough(version, len(silent)):
            reasons.append(f"{model}: {', '.join([str(version or 'not loaded'), *silent])}")
    if reasons:
        raise HTTPException(503, f"not ready: {'; '.join(reasons)}")


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(shared: Shared) -> Response:
    """Return the sidecar's series and the versions that TorchServe has loaded, for Prometheus."""
    versions: dict[str, list[ModelVersion]] = {}
    with suppress(TorchServeError):  # the other series matter most when it is down
        versions = await shared.all_versions()
    gauge, silent = shared.metrics.ready_workers, shared.metrics.unresponsive_workers
    gauge.clear()
    silent.clear()
    for model, loaded in versions.items():
        for version in loaded:
            is_default = str(version.is_default).lower()
            gauge.labels(model, version.version, is_default).set(version.ready_workers)
            silent.labels(model, version.version).set(len(shared.workers.silent(version)))
    return Response(generate_latest(shared.metrics.registry), media_type=CONTENT_TYPE_LATEST)
