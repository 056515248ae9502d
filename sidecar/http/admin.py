"""The route that serves newer archives of the model store."""

from __future__ import annotations

import secrets
from dataclasses import asdict
from typing import Annotated

from fastapi import Depends, HTTPException, Response, Security
from fastapi.security import APIKeyHeader

from serving.rollout import Rollout, RolloutError, changing, roll_out
from sidecar.http import bodies
from sidecar.http.json_route import OrjsonResponse
from sidecar.http.state import Shared, new_router

router = new_router()


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
