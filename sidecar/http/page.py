"""The page for a person in a browser, and the requests that it sends."""

from __future__ import annotations

from pathlib import Path

from fastapi import HTTPException, Request, Response
from fastapi.responses import FileResponse

from handlers.errors import ArchiveError
from serving.archive_file import sample_request
from sidecar.http.json_route import OrjsonResponse
from sidecar.http.state import Shared, new_router
from sidecar.translate import ROUTES

PAGE = Path(__file__).with_name("page.html")

router = new_router()


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
    """Return the page's example of a request to a model."""
    shared.check_enabled(model)
    try:
        body = sample_request(shared.settings.sidecar_model_store / f"{model}.mar")
    except ArchiveError as error:
        raise HTTPException(404, str(error)) from error
    return Response(body, media_type="application/json")


@router.post("/try/{model}", include_in_schema=False)
async def send_sample(model: str, request: Request, shared: Shared) -> Response:
    """Send the page's request to TorchServe unchanged."""
    body = await request.body()
    shared.check_enabled(model)
    status, answer = await shared.torchserve.send(model, body)
    return Response(answer, status, media_type="application/json")
