"""The page for a person in a browser, and the requests that it sends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from fastapi import HTTPException, Request, Response
from fastapi.responses import FileResponse

from handlers.errors import ArchiveError
from serving.archive_file import sample_request
from serving.client import TorchServeError
from sidecar.http.json_route import OrjsonResponse
from sidecar.http.state import Shared, new_router
from sidecar.translate import ROUTES

PAGE = Path(__file__).with_name("page.html")

router = new_router("page")


@router.get("/", response_model=None)
async def index(request: Request, shared: Shared) -> Response:
    """Describe what is served: a page for a browser, JSON for other clients."""
    headers = {"Vary": "Accept", "Cache-Control": "no-cache"}
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(PAGE, headers=headers)
    versions = await shared.all_versions()
    models = {
        model: [{"version": v.version, "workers": v.workers} for v in versions.get(model, [])]
        for model in shared.models
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


@router.get("/try/{model}", include_in_schema=False)
async def sample(model: str, shared: Shared) -> Response:
    """Return an example of a request to a model, and the features that it reads."""
    shared.check_enabled(model)
    try:
        body = sample_request(shared.settings.sidecar_model_store / f"{model}.mar")
    except ArchiveError as error:
        raise HTTPException(404, str(error)) from error
    signature: dict[str, Any] = {}
    with suppress(TorchServeError):  # the request can be shown all the same
        signature = await shared.torchserve.signature(model)
    features = signature.get("features", [])
    return OrjsonResponse({"request": orjson.Fragment(body), "features": features})


@router.post("/try/{model}", include_in_schema=False)
async def send_sample(model: str, request: Request, shared: Shared) -> Response:
    """Send the page's request to TorchServe unchanged."""
    body = await request.body()
    shared.check_enabled(model)
    status, answer = await shared.torchserve.send(model, body)
    return Response(answer, status, media_type="application/json")
