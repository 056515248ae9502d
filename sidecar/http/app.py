"""The sidecar: ``python -m sidecar.http.app``; every model runs in TorchServe."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as AnyHTTPException

from handlers.errors import ArchiveError
from serving import milvus as vectors
from serving.archive_file import sample_request
from serving.client import MAX_BODY_BYTES, ModelVersion, TorchServe, TorchServeError
from serving.rollout import Rollout, RolloutError, changing, roll_out
from serving.settings import ServeError, SidecarSettings
from sidecar.http import bodies
from sidecar.http.telemetry import LOG_CONFIG, Metrics, Telemetry

PAGE = Path(__file__).with_name("page.html")
DRAIN_TIMEOUT_S = 10
COMPARE_INTERVAL_S = 30
VERSIONS_INTERVAL_S = 5
# Go's pool keeps an idle connection for 90 s; one that we close first may lose a request.
KEEP_ALIVE_S = 120

ROUTES = {
    "/query_embedding": "dssm",
    "/user_embedding": "youtube_dnn",
    "/item_embedding": "item_tower",
    "/recall": "graph_recall",
    "/predict": "xgb",
}

PROBES = ("/ping", "/health", "/metrics")


class OrjsonRequest(Request):
    """A request whose JSON is parsed by orjson: faster, and NaN is no number."""

    async def json(self) -> Any:
        """The body."""
        return orjson.loads(await self.body())


class OrjsonRoute(APIRoute):
    """A route that takes an :class:`OrjsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            return await handle(OrjsonRequest(request.scope, request.receive))

        return answer


class OrjsonResponse(JSONResponse):
    """JSON written by orjson."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return orjson.dumps(content)


class State:
    """What the routes share.

    Attributes:
        settings: Of this sidecar.
        torchserve: Open while the app runs.
        metrics: Of this sidecar.
        reloading: Held by the reload that is under way.
        index_mismatches: What the last comparison of towers with the item index found; None before.
        versions: Default version of each enabled model, as TorchServe told at most
            VERSIONS_INTERVAL_S ago.
    """

    def __init__(self, settings: SidecarSettings) -> None:
        self.settings = settings
        self.torchserve = TorchServe(
            settings.sidecar_inference_url,
            settings.sidecar_management_url,
            settings.sidecar_key_file,
            settings.sidecar_timeout_s,
        )
        self.metrics = Metrics()
        self.reloading = asyncio.Lock()
        self.index_mismatches: list[str] | None = None
        self.versions: dict[str, str] = {}


async def _shared(request: Request) -> State:
    shared: State = request.app.state.shared
    return shared


Shared = Annotated[State, Depends(_shared)]

router = APIRouter(
    route_class=OrjsonRoute,
    default_response_class=OrjsonResponse,
    # Without them FastAPI would promise a 422.
    responses={"4XX": {"model": bodies.Problem}, "5XX": {"model": bodies.Problem}},
)


@router.post("/query_embedding", response_model=bodies.QueryEmbedding)
async def query_embedding(body: bodies.QueryRequest, shared: Shared) -> Response:
    """Embed a query with dssm."""
    row = {"query_features": body.query_features}
    return OrjsonResponse({"query_embedding": await _predict(shared, "dssm", row)})


@router.post("/user_embedding", response_model=bodies.UserEmbedding)
async def user_embedding(body: bodies.UserRequest, shared: Shared) -> Response:
    """Embed a user and the user's history with youtube_dnn."""
    history = body.history_item_ids or []
    row = {"user_features": body.user_features, "history_item_ids": history}
    return OrjsonResponse({"user_embedding": await _predict(shared, "youtube_dnn", row)})


@router.post("/item_embedding", response_model=bodies.ItemEmbedding)
async def item_embedding(body: bodies.ItemRequest, shared: Shared) -> Response:
    """Embed an item with item_tower."""
    embedding = await _predict(shared, "item_tower", body.item_features, "item_features.")
    return OrjsonResponse({"item_embedding": embedding})


@router.post("/recall", response_model=bodies.Recall)
async def recall(body: bodies.RecallRequest, shared: Shared) -> Response:
    """Recall the items nearest to a user with graph_recall."""
    asked = bodies.DEFAULT_TOP_K if body.top_k is None else body.top_k
    row = {"user_id": body.user_id, "top_k": min(max(asked, 1), bodies.MAX_TOP_K)}
    [found] = await _predict(shared, "graph_recall", row)
    return OrjsonResponse({"item_ids": found["item_ids"], "scores": found["scores"]})


@router.post("/predict", response_model=bodies.Predictions)
async def predict(body: bodies.PredictRequest, shared: Shared) -> Response:
    """Score rows with xgb: the older protocol."""
    name, rows = "features_list", body.features_list
    if rows is None:
        name, rows = "data", body.data
    if rows is None:
        raise HTTPException(400, "features_list: expected it (or data) in the body, got neither")
    try:
        scores = await shared.torchserve.predict("xgb", rows)
    except TorchServeError as error:
        raise TorchServeError(error.status, re.sub(r"^data\b", name, str(error))) from error
    return OrjsonResponse({"scores": scores, "predictions": scores})


async def _predict(shared: State, model: str, row: Any, name: str = "") -> list[Any]:
    """The predictions for one row, which the caller wrote under another name."""
    try:
        return await shared.torchserve.predict(model, [row])
    except TorchServeError as error:
        raise TorchServeError(error.status, re.sub(r"^data\[0\]\.", name, str(error))) from error


@router.get("/ping")
async def ping(shared: Shared) -> Response:
    """Whether each enabled model of the routes has a worker."""
    enabled = shared.settings.sidecar_models
    models = [model for model in ROUTES.values() if model in enabled] or enabled
    versions = await _default_versions(shared, models)
    return _healthy({m: v for m, v in versions.items() if v is None or not v.ready_workers})


@router.get("/health")
async def health(shared: Shared) -> Response:
    """Whether each enabled model has all its workers, and what does not match its item index."""
    versions = await _default_versions(shared, shared.settings.sidecar_models)
    unready = {m: v for m, v in versions.items() if v is None or not v.ready}
    if unready or shared.index_mismatches is None:
        return _healthy(unready)
    return OrjsonResponse({"status": "Healthy", "index": shared.index_mismatches})


async def _default_versions(shared: State, models: Sequence[str]) -> dict[str, ModelVersion | None]:
    versions = await asyncio.gather(*map(shared.torchserve.default_version, models))
    return dict(zip(models, versions, strict=True))


def _healthy(unready: dict[str, ModelVersion | None]) -> Response:
    if unready:
        told = "; ".join(f"{model}: {found or 'not loaded'}" for model, found in unready.items())
        raise HTTPException(503, f"not ready: {told}")
    return OrjsonResponse({"status": "Healthy"})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(shared: Shared) -> Response:
    """Series of the sidecar, and the versions that TorchServe has loaded, for Prometheus."""
    versions: dict[str, list[ModelVersion]] = {}
    with suppress(TorchServeError):  # without it the other series are wanted all the more
        versions = await _versions(shared)
    gauge = shared.metrics.ready_workers
    gauge.clear()
    for model, [default, *others] in versions.items():
        for version in (default, *others):
            is_default = str(version is default).lower()
            gauge.labels(model, version.version, is_default).set(version.ready_workers)
    return Response(generate_latest(shared.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _check_key(
    shared: Shared,
    key: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))],
) -> None:
    expected = shared.settings.reload_api_key.get_secret_value()
    if expected and not secrets.compare_digest((key or "").encode(), expected.encode()):
        got = "none" if key is None else "another"
        raise HTTPException(401, f"X-API-Key: expected the value of RELOAD_API_KEY, got {got}")


@router.post("/reload", response_model=bodies.Reload, dependencies=[Depends(_check_key)])
async def reload(shared: Shared) -> Response:
    """Serve the newer archives of the model store; answers when they serve, or have failed."""
    rollouts: dict[str, Rollout] = {}
    store = shared.settings.sidecar_model_store
    async with shared.reloading:
        try:
            with changing(store):
                for model in shared.settings.sidecar_models:
                    rollouts[model] = await roll_out(shared.torchserve, store / f"{model}.mar")
                    shared.metrics.reloads.labels(model, rollouts[model].outcome).inc()
        except RolloutError as error:
            raise HTTPException(409, str(error)) from error
    models = {model: asdict(rollout) for model, rollout in rollouts.items()}
    if errors := [rollout.error for rollout in rollouts.values() if rollout.error]:
        return OrjsonResponse({"detail": "; ".join(errors), "models": models}, 500)
    return OrjsonResponse({"models": models})


# For a person in a browser


@router.get("/", response_model=None)
async def index(request: Request, shared: Shared) -> Response:
    """What is served: a page for a browser, JSON for others."""
    headers = {"Vary": "Accept", "Cache-Control": "no-cache"}
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(PAGE, headers=headers)
    versions = await _versions(shared)
    models = {
        model: [{"version": v.version, "workers": v.workers} for v in versions.get(model, [])]
        for model in shared.settings.sidecar_models
    }
    return OrjsonResponse(
        {
            "service": "recmar sidecar",
            "routes": ROUTES,
            "models": models,
            "requests": shared.metrics.request_counts(),
        },
        headers=headers,
    )


async def _versions(shared: State) -> dict[str, list[ModelVersion]]:
    """Versions of each enabled model that is loaded, the default one first."""
    models = shared.settings.sidecar_models
    versions = await asyncio.gather(*map(shared.torchserve.versions, models))
    return {model: found for model, found in zip(models, versions, strict=True) if found}


@router.get("/try/{model}", include_in_schema=False)
async def sample(model: str, shared: Shared) -> Response:
    """The page's example of a request to a model."""
    try:
        body = sample_request(
            shared.settings.sidecar_model_store / f"{_enabled(shared, model)}.mar"
        )
    except ArchiveError as error:
        raise HTTPException(404, str(error)) from error
    return Response(body, media_type="application/json")


@router.post("/try/{model}", include_in_schema=False)
async def send_sample(model: str, request: Request, shared: Shared) -> Response:
    """Send the page's request to TorchServe as it is."""
    body = await request.body()
    status, answer = await shared.torchserve.send(_enabled(shared, model), body)
    return Response(answer, status, media_type="application/json")


def _enabled(shared: State, model: str) -> str:
    enabled = shared.settings.sidecar_models
    if model not in enabled:
        raise HTTPException(404, f"no model is called {model}; there are {', '.join(enabled)}")
    return model


# The app


async def _answer_invalid(request: Request, error: RequestValidationError) -> Response:
    return _problem(request, 400, bodies.explain(error.errors()))


async def _answer_torchserve_error(request: Request, error: TorchServeError) -> Response:
    return _problem(request, error.status, str(error))


async def _answer_http_error(request: Request, error: AnyHTTPException) -> Response:
    return _problem(request, error.status_code, error.detail, error.headers)


def _problem(
    request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    request.state.detail = detail  # for the log line
    # A lone surrogate is not UTF-8; the answer has to be.
    content = {"detail": detail.encode("utf-8", "replace").decode()}
    return OrjsonResponse(content, status, headers)


async def _follow_versions(shared: State) -> None:
    """Keep the versions that the log names: an answer does not tell which version gave it."""
    while True:
        with suppress(TorchServeError):
            found = await _default_versions(shared, shared.settings.sidecar_models)
            shared.versions.update({m: v.version for m, v in found.items() if v is not None})
        await asyncio.sleep(VERSIONS_INTERVAL_S)


async def _follow_index(shared: State) -> None:
    """Keep what does not match: a probe does not wait for a database."""
    settings = shared.settings
    while settings.index_uri:
        wait_s = VERSIONS_INTERVAL_S
        with suppress(TorchServeError):
            versions = await _default_versions(shared, settings.sidecar_models)
            if all(version is not None and version.ready for version in versions.values()):
                told = await asyncio.gather(
                    *map(shared.torchserve.signature, settings.sidecar_models)
                )
                shared.index_mismatches = await asyncio.to_thread(
                    vectors.mismatches, settings.index_uri, vectors.towers(told)
                )
                shared.metrics.index_mismatches.set(len(shared.index_mismatches))
                wait_s = COMPARE_INTERVAL_S
        await asyncio.sleep(wait_s)


def _is_probe(scope: MutableMapping[str, Any]) -> bool:
    return scope.get("path") in PROBES


def create_app(settings: SidecarSettings) -> FastAPI:
    """The sidecar as an ASGI app."""
    shared = State(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with shared.torchserve:
            following = [
                asyncio.create_task(follow(shared)) for follow in (_follow_versions, _follow_index)
            ]
            try:
                yield
            finally:
                for task in following:
                    task.cancel()

    app = FastAPIOffline(  # /docs without a CDN
        title="recmar sidecar",
        description=__doc__,
        redoc_url=None,
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
        # Traces only, to where OTEL_EXPORTER_OTLP_ENDPOINT says; nowhere without it.
        telemetry={
            "auto_configure": True,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "exclude": _is_probe,
        },
        exception_handlers={
            RequestValidationError: _answer_invalid,
            TorchServeError: _answer_torchserve_error,
            AnyHTTPException: _answer_http_error,
        },
    )
    app.state.shared = shared
    app.include_router(router)
    app.add_middleware(Telemetry, metrics=shared.metrics, models=ROUTES, versions=shared.versions)
    return app


def main() -> int:
    """Serve until a signal asks to stop; requests in flight are finished."""
    try:
        settings = SidecarSettings.from_env(os.environ)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    app = create_app(settings)
    # What is there by now stays; to look at it took the collector 40 ms, 4 times a second.
    gc.freeze()
    uvicorn.run(
        app,
        host=settings.sidecar_host,
        port=settings.sidecar_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=LOG_CONFIG,
        access_log=False,  # Telemetry writes them
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
    )
    return 0
