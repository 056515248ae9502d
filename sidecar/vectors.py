"""Whether the item index that callers search was made by the tower that embeds their queries."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


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


def mismatches(uri: str, served: Iterable[Tower]) -> list[str]:
    """Compare served towers with a Milvus.

    Args:
        uri: A file of Milvus Lite or the address of a server, whose token is MILVUS_TOKEN.
        served: Towers of the default versions.

    Returns:
        A sentence for each tower whose live collection is of another space, or is not there.
    """
    try:  # only who has an index needs the library
        from pymilvus import MilvusClient, MilvusException
    except ImportError:
        return ["INDEX_URI is set, and pymilvus is not installed; run: make index"]
    try:
        client = MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))
    except (MilvusException, OSError, ValueError) as error:  # the last for a port of letters
        return [f"INDEX_URI={uri}: cannot be reached: {error}"]
    found = []
    try:
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
    except MilvusException as error:
        found.append(f"INDEX_URI={uri}: {error}")
    finally:
        client.close()
        if "://" not in uri:  # Milvus Lite would go on holding the file, which make index needs
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(uri)
    return found
