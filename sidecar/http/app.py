"""The sidecar as an ASGI app and as a process."""

from __future__ import annotations

import gc
import logging.config
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from serving.settings import ServeError, SidecarSettings
from sidecar.http import admin, page, probes, routes
from sidecar.http.background import background_tasks
from sidecar.http.errors import HANDLERS
from sidecar.http.protocol import HttpProtocol
from sidecar.http.state import State
from sidecar.http.telemetry import LOG_CONFIG, Telemetry
from sidecar.translate import ROUTES

logger = logging.getLogger(__name__)

DESCRIPTION = "Translates its routes to predictions of the models, which all run in TorchServe."
GROUPS = {  # of the routes in /docs
    "predictions": "For callers. An error's `detail` says where, what was expected and what came.",
    "probes": "For load balancers, supervisors and Prometheus.",
    "versions": "For whoever puts a new version into service.",
    "page": "For a person: routes and models, with a form to try each.",
}
DRAIN_TIMEOUT_S = 10
# Go's pool keeps an idle connection for 90 s; if we close it first, a request may be lost.
KEEP_ALIVE_S = 120


def create_app(settings: SidecarSettings) -> FastAPI:
    """Create the ASGI app."""
    shared = State(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with shared.torchserve, background_tasks(shared):
            yield

    app = FastAPIOffline(  # /docs without a CDN
        title="recmar sidecar",
        description=DESCRIPTION,
        openapi_tags=[{"name": tag, "description": text} for tag, text in GROUPS.items()],
        redoc_url=None,
        lifespan=lifespan,
        # Traces only, sent to OTEL_EXPORTER_OTLP_ENDPOINT if that is set.
        telemetry={
            "auto_configure": True,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": probes.is_probe,
        },
        exception_handlers=HANDLERS,
    )
    app.state.shared = shared
    for module in (routes, probes, admin, page):
        app.include_router(module.router)
    app.add_middleware(Telemetry, metrics=shared.metrics, models=ROUTES, versions=shared.versions)
    return app


def _log_exception(*error: Any) -> None:
    logger.critical("the sidecar failed", exc_info=error)


def main() -> int:
    """Serve until a signal asks to stop; finish the requests in flight."""
    logging.config.dictConfig(LOG_CONFIG)
    sys.excepthook = _log_exception
    try:
        settings = SidecarSettings.from_env(os.environ)
    except ServeError as error:
        logger.error("%s", error)
        return 1
    app = create_app(settings)
    # All present objects stay; looking at them took the garbage collector 40 ms, 4 times a second.
    gc.freeze()
    uvicorn.run(
        app,
        host=settings.sidecar_host,
        port=settings.sidecar_port,
        loop="uvloop",
        http=HttpProtocol,
        ws="none",
        log_config=LOG_CONFIG,
        access_log=False,  # Telemetry logs the requests
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
    )
    return 0
