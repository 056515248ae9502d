"""Whether the item index that callers search was made by the tower that embeds their queries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pymilvus import MilvusClient


@dataclass(frozen=True)
class Tower:
    """What the signature of a served embedding model says.

    Attributes:
        model: As in the URL.
        version: As in the URL.
        space_id: Of its vectors.
        collection: The alias under which the items of that space are searched.
    """

    model: str
    version: str
    space_id: str
    collection: str


def towers(signatures: Iterable[Mapping[str, Any]]) -> list[Tower]:
    """The towers among the models that these signatures describe."""
    return [
        Tower(s["model_name"], s["model_version"], s["space_id"], s["collection"])
        for s in signatures
        if s.get("collection") and s.get("space_id")
    ]


@contextmanager
def connected(uri: str) -> Iterator[MilvusClient]:
    """A client of a Milvus.

    Args:
        uri: A file of Milvus Lite or the address of a server, whose token is MILVUS_TOKEN.

    Raises:
        MilvusException: It cannot be reached.
        ValueError: The address is none.
    """
    from pymilvus import MilvusClient

    client = MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    try:
        yield client
    finally:
        client.close()
        if "://" not in uri:
            from milvus_lite.server_manager import server_manager_instance

            # Else its threads go on in this process, and hold the file that others need.
            server_manager_instance.release_server(uri)


def mismatches(uri: str, served: Iterable[Tower]) -> list[str]:
    """Compare served towers with a Milvus.

    Args:
        uri: As for `connected`.
        served: Towers of the default versions.

    Returns:
        A sentence for each tower whose live collection is of another space, or is not there.
    """
    try:  # only who has an index needs the library
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
    except (MilvusException, OSError, ValueError) as error:  # the last for a port of letters
        found.append(f"INDEX_URI={uri}: cannot be read: {error}")
    return found
