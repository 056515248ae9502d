"""The route that serves newer archives of the model store."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request, Response, Security
from fastapi.security import APIKeyHeader

from handlers.body_text import clipped
from serving.ports import is_loopback
from serving.rollout import Rollout, RolloutError, changing, roll_out
from sidecar.http import bodies
from sidecar.http.json_route import OrjsonResponse
from sidecar.http.state import Shared, new_router

router = new_router("versions")


async def _check_caller(
    request: Request,
    shared: Shared,
    key: Annotated[str | None, Security(APIKeyHeader(name="X-API-Key", auto_error=False))],
) -> None:
    """Admit callers with the key; without one, programs on this machine and the sidecar's pages."""
    expected = shared.settings.reload_api_key.get_secret_value()
    if not expected:
        if reason := _foreign(request):
            raise HTTPException(
                403,
                f"reload: expected a caller on this machine, got {reason}; to admit others, set "
                "RELOAD_API_KEY, and send it as X-API-Key",
            )
    elif not secrets.compare_digest((key or "").encode(), expected.encode()):
        got = "none" if key is None else "another"
        raise HTTPException(401, f"X-API-Key: expected the value of RELOAD_API_KEY, got {got}")


def _foreign(request: Request) -> str:
    """Return what shows that a request comes from elsewhere; empty if nothing does."""
    peer = request.client.host if request.client else "an unknown address"
    if not is_loopback(peer):
        return peer
    headers = request.headers
    for name in ("forwarded", "x-forwarded-for", "via"):
        if name in headers:
            return f"one behind a proxy ({name}: {clipped(headers[name])})"
    # A page of another site can make a browser on this machine send a request. Its own name may
    # resolve to the loopback, so the name must be one of this machine's.
    host = headers.get("host", "")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return f"one that calls this machine {clipped(host)}"
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin") or origin not in (None, f"http://{host}"):
        return f"a page of {origin or 'another site'}"
    return ""


@router.post("/reload", response_model=bodies.Reload, dependencies=[Depends(_check_caller)])
async def reload(shared: Shared) -> Response:
    """Serve the newer archives of the model store; answers when they serve or have failed."""
    rollouts: dict[str, Rollout] = {}
    store = shared.settings.sidecar_model_store
    async with shared.reloading:
        try:
            with changing(store):
                for model in shared.models:
                    rollouts[model] = await roll_out(shared.torchserve, store / f"{model}.mar")
                    shared.metrics.reloads.labels(model, rollouts[model].outcome).inc()
        except RolloutError as error:
            raise HTTPException(409, str(error)) from error
    models = {model: asdict(rollout) for model, rollout in rollouts.items()}
    if errors := [rollout.error for rollout in rollouts.values() if rollout.error]:
        return OrjsonResponse({"detail": "; ".join(errors), "models": models}, 500)
    return OrjsonResponse({"models": models})
