"""Check that the item index was made by the training run of the tower that embeds the queries."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymilvus import MilvusClient

    from serving.client import TorchServe


@dataclass(frozen=True)
class Tower:
    """A served embedding model, as its signature describes it.

    Attributes:
        model: The model's name in URLs.
        version: The version's name in URLs.
        space_id: Space of its vectors.
        collection: Alias of the collection with the items of that space.
    """

    model: str
    version: str
    space_id: str
    collection: str


def towers(signatures: Iterable[Mapping[str, Any]]) -> list[Tower]:
    """Return the towers among the models of these signatures."""
    return [
        Tower(s["model_name"], s["model_version"], s["space_id"], s["collection"])
        for s in signatures
        if s.get("collection") and s.get("space_id")
    ]


@contextmanager
def connected(uri: str) -> Iterator[MilvusClient]:
    """Connect to a Milvus.

    Args:
        uri: A file of Milvus Lite, or the address of a server, whose token is MILVUS_TOKEN.

    Raises:
        MilvusException: If it cannot be reached.
        ValueError: If the address is invalid.
    """
    from pymilvus import MilvusClient

    for library in ("faiss", "milvus_lite"):  # each logs how it starts
        logging.getLogger(library).setLevel(logging.WARNING)
    client = MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    try:
        yield client
    finally:
        client.close()
        if "://" not in uri:
            from milvus_lite.server_manager import server_manager_instance

            # Otherwise its threads stay in this process and hold the file that others need.
            server_manager_instance.release_server(uri)


async def served_mismatches(torchserve: TorchServe, models: Iterable[str], uri: str) -> list[str]:
    """Compare the default versions of a server with a Milvus.

    Args:
        torchserve: Client of the server.
        models: The models to compare.
        uri: File or address, as for `connected`.

    Returns:
        As for `mismatches`.

    Raises:
        TorchServeError: If the server does not describe its models.
    """
    served = towers(await asyncio.gather(*map(torchserve.signature, models)))
    return await asyncio.to_thread(mismatches, uri, served)


def mismatches(uri: str, served: Iterable[Tower]) -> list[str]:
    """Compare served towers with a Milvus.

    Args:
        uri: File or address, as for `connected`.
        served: Towers of the default versions.

    Returns:
        A sentence for each tower whose live collection has another space, or does not exist.
    """
    try:  # an optional library, needed only with an index
        from pymilvus import MilvusException
    except ImportError:
        return ["INDEX_URI is set, and pymilvus is not installed; run: make index"]
    found = []
    try:
        with connected(uri) as client:
            for tower in served:
                live = None
                if client.has_collection(tower.collection):
                    described = client.describe_collection(tower.collection)
                    live = described.get("properties", {}).get("space_id")
                if live != tower.space_id:
                    found.append(
                        f"{tower.model} {tower.version} embeds in space {tower.space_id}, "
                        f"{tower.collection} holds {live or 'nothing'}; run: make index"
                    )
    except (
        MilvusException,
        OSError,
        ValueError,
    ) as error:  # ValueError: an invalid port
        found.append(f"INDEX_URI={uri}: cannot be read: {error}")
    return found
