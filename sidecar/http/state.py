"""The state that the routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Request

from serving.client import TorchServe, TorchServeError
from serving.model_version import ModelVersion
from serving.settings import SidecarSettings
from sidecar.http.bodies import Problem
from sidecar.http.json_route import JsonRoute, OrjsonResponse
from sidecar.http.telemetry import Metrics
from sidecar.http.workers import WorkerWatch

Described = TypeVar("Described")


class State:
    """The state of one sidecar.

    Attributes:
        settings: Settings of the sidecar.
        models: Enabled models.
        torchserve: Client of TorchServe, open while the app runs.
        metrics: Series of the sidecar.
        reloading: Held by the reload that is under way.
        index_mismatches: Result of the last comparison of towers with the item index; None before
            the first one.
        versions: Default version of each enabled model, at most a few seconds old.
        workers: What the workers have done lately.
    """

    def __init__(self, settings: SidecarSettings) -> None:
        self.settings = settings
        self.models = settings.sidecar_models
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
        self.workers = WorkerWatch()

    async def default_versions(self, models: Sequence[str]) -> dict[str, ModelVersion | None]:
        """Return the default version of each model; None for one that is not loaded."""
        versions = await self._in_time(self.torchserve.default_version, models)
        return dict(zip(models, versions, strict=True))

    async def all_versions(self) -> dict[str, list[ModelVersion]]:
        """Return the versions of each enabled model that is loaded, the default one first."""
        versions = await self._in_time(self.torchserve.versions, self.models)
        return {model: found for model, found in zip(self.models, versions, strict=True) if found}

    async def _in_time(
        self, describe: Callable[[str], Awaitable[Described]], models: Sequence[str]
    ) -> list[Described]:
        """Describe models; for probes, which must not wait while the client tries again."""
        timeout_s = self.settings.sidecar_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.gather(*map(describe, models))
        except TimeoutError as error:
            expected = f"expected TorchServe's models within {timeout_s:g} s"
            raise TorchServeError(504, f"{expected}, got none") from error

    def check_enabled(self, model: str) -> None:
        """Check that a model is enabled.

        Raises:
            HTTPException: 404 if it is not.
        """
        if model not in self.models:
            known = ", ".join(self.models)
            raise HTTPException(404, f"no model is called {model}; there are {known}")


async def _shared(request: Request) -> State:
    shared: State = request.app.state.shared
    return shared


Shared = Annotated[State, Depends(_shared)]


def new_router(tag: str) -> APIRouter:
    """Create a router of `JsonRoute`, whose routes answer in JSON.

    Args:
        tag: Group of the routes in ``/docs``, one of `sidecar.http.app.GROUPS`.
    """
    return APIRouter(
        tags=[tag],
        route_class=JsonRoute,
        default_response_class=OrjsonResponse,
        # Without them FastAPI would document a 422.
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
