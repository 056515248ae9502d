"""The routes for load balancers, supervisors and Prometheus."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from fastapi import HTTPException, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.client import TorchServeError
from serving.model_version import ModelVersion
from sidecar.http.json_route import OrjsonResponse
from sidecar.http.state import Shared, new_router
from sidecar.translate import ROUTES

router = new_router()


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is for one of these routes."""
    return scope.get("path") in ("/ping", "/health", "/metrics")


@router.get("/ping")
async def ping(shared: Shared) -> Response:
    """Check that each enabled model of the routes has a worker."""
    models = [model for model in ROUTES.values() if model in shared.models] or shared.models
    versions = await shared.default_versions(models)
    return _healthy({m: v for m, v in versions.items() if v is None or not v.ready_workers})


@router.get("/health")
async def health(shared: Shared) -> Response:
    """Check that each enabled model has all its workers; list mismatches with the item index."""
    versions = await shared.default_versions(shared.models)
    unready = {m: v for m, v in versions.items() if v is None or not v.ready}
    if unready or shared.index_mismatches is None:
        return _healthy(unready)
    return OrjsonResponse({"status": "Healthy", "index": shared.index_mismatches})


def _healthy(unready: dict[str, ModelVersion | None]) -> Response:
    if unready:
        reasons = (f"{model}: {version or 'not loaded'}" for model, version in unready.items())
        raise HTTPException(503, f"not ready: {'; '.join(reasons)}")
    return OrjsonResponse({"status": "Healthy"})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(shared: Shared) -> Response:
    """Return the sidecar's series and the versions that TorchServe has loaded, for Prometheus."""
    versions: dict[str, list[ModelVersion]] = {}
    with suppress(TorchServeError):  # the other series matter most when it is down
        versions = await shared.all_versions()
    gauge = shared.metrics.ready_workers
    gauge.clear()
    for model, loaded in versions.items():
        for version in loaded:
            is_default = str(version.is_default).lower()
            gauge.labels(model, version.version, is_default).set(version.ready_workers)
    return Response(generate_latest(shared.metrics.registry), media_type=CONTENT_TYPE_LATEST)
