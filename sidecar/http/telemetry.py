"""Log lines and Prometheus series of the requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handlers.logs import JsonFormatter
from serving.client import REQUEST_ID, request_id_of_caller

MAX_REQUEST_ID = 200  # TorchServe refuses headers of more than 8 kB
# A prediction takes 1 to 10 ms; callers time out within 10 s.
LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)

logger = logging.getLogger(__name__)


LOG_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
}


class Metrics:
    """The series of one sidecar.

    Attributes:
        registry: Registry that holds the series.
        requests: Answered requests, by route and status.
        latency_s: Latencies, by route.
        reloads: Reloads, by model and outcome.
        ready_workers: READY workers, by model and version.
        unresponsive_workers: Workers that do not answer, by model and version.
        index_mismatches: Number of mismatches that /health lists; 0 without an index.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sidecar_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.latency_s = Histogram(
            "sidecar_latency_seconds",
            "Time until the answer",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.reloads = Counter(
            "sidecar_reloads",
            "Models that a reload looked at",
            ["model", "outcome"],
            registry=self.registry,
        )
        self.ready_workers = Gauge(
            "sidecar_model_ready_workers",
            "READY workers of each version that TorchServe has loaded",
            ["model", "version", "default"],
            registry=self.registry,
        )
        self.unresponsive_workers = Gauge(
            "sidecar_model_unresponsive_workers",
            "Workers of each version that are stopped, or hang while requests wait",
            ["model", "version"],
            registry=self.registry,
        )
        self.index_mismatches = Gauge(
            "sidecar_index_mismatches",
            "Towers that the live item index does not match",
            registry=self.registry,
        )

    def request_counts(self) -> dict[str, dict[str, int]]:
        """Return the number of requests by route and status."""
        counts: dict[str, dict[str, int]] = {}
        for series in self.requests.collect():
            for sample in series.samples:
                if sample.name.endswith("_total"):
                    statuses = counts.setdefault(sample.labels["route"], {})
                    statuses[sample.labels["status"]] = int(sample.value)
        return counts


class Telemetry:
    """ASGI middleware that gives each request an id, counts it and logs it.

    Args:
        app: App that answers the requests.
        metrics: Series to count in.
        models: Model behind each route that has one.
        versions: Default version of each model.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        models: Mapping[str, str],
        versions: Mapping[str, str],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._models = models
        self._versions = versions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = Headers(scope=scope).get(REQUEST_ID, "")[:MAX_REQUEST_ID] or uuid4().hex
        request_id_of_caller.set(request_id)
        status = 500  # the status if the app raises

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            latency_s = time.perf_counter() - start
            # Not the path: series for invented paths would fill the memory.
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.latency_s.labels(route).observe(latency_s)
            fields = {
                "request_id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "latency_ms": round(latency_s * 1e3, 2),
            }
            if model := self._models.get(route):
                fields |= {"model": model, "version": self._versions.get(model)}
            if detail := scope.get("state", {}).get("detail"):
                fields["detail"] = detail
            logger.info("request", extra={"fields": fields})
