"""Tasks that keep the shared state up to date, so that no request waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from serving import milvus
from serving.client import TorchServeError
from sidecar.http.state import State

INDEX_INTERVAL_S = 30
VERSIONS_INTERVAL_S = 5


@asynccontextmanager
async def background_tasks(shared: State) -> AsyncIterator[None]:
    """Run the tasks while the block runs."""
    tasks = [asyncio.create_task(follow(shared)) for follow in (_follow_versions, _follow_index)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def _follow_versions(shared: State) -> None:
    """Update the versions for the log, which no response names, and look at their workers."""
    while True:
        with suppress(TorchServeError):
            found = await shared.default_versions(shared.models)
            for version in filter(None, found.values()):
                shared.versions[version.name] = version.version
                shared.workers.look(version)
        await asyncio.sleep(VERSIONS_INTERVAL_S)


async def _follow_index(shared: State) -> None:
    """Update the mismatches with the item index, if there is one."""
    while uri := shared.settings.index_uri:
        wait_s = VERSIONS_INTERVAL_S
        with suppress(TorchServeError):
            versions = await shared.default_versions(shared.models)
            if all(version is not None and version.ready for version in versions.values()):
                shared.index_mismatches = await milvus.served_mismatches(
                    shared.torchserve, shared.models, uri
                )
                shared.metrics.index_mismatches.set(len(shared.index_mismatches))
                wait_s = INDEX_INTERVAL_S
        await asyncio.sleep(wait_s)
