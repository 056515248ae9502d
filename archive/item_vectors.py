"""Item vectors of a training run, written to Milvus or to a file.

Vectors of two training runs cannot be compared, so a tower and its index belong together. The
vectors of each run go to a collection of their own, named after the run's ``space_id``; callers
search an alias, which moves once the collection is complete.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet
from pymilvus import DataType, MilvusClient
from tqdm import tqdm

from archive import catalog
from archive.files import replacing
from serving.milvus import connected
from training import artifacts
from training.artifacts import IDS_FILE, VECTORS_FILE

MAX_ID_BYTES = 512

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ItemVectors:
    """The items of one training run.

    Attributes:
        ids: Item ids, in the order of the vectors.
        vectors: float32 [N, D], mapped from the file, not read into memory.
        space_id: Identifies the space of the vectors.
    """

    ids: list[str]
    vectors: Vectors
    space_id: str

    @classmethod
    def load(cls, folder: Path) -> ItemVectors:
        """Open the item vectors of an artifact folder.

        Raises:
            ArtifactError: If ids and vectors do not match.
        """
        ids = json.loads((folder / IDS_FILE).read_text())
        vectors = np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != len(ids):
            raise artifacts.ArtifactError(
                f"{folder}: expected a vector for each of {len(ids)} ids, "
                f"got an array of shape {vectors.shape}; train again"
            )
        return cls(ids, vectors, artifacts.read_meta(folder)["space_id"])

    def batches(self, size: int, start: int = 0) -> Iterator[tuple[list[str], Vectors]]:
        """Yield ids and vectors, ``size`` at a time, beginning with item ``start``."""
        for i in range(start, len(self.ids), size):
            yield self.ids[i : i + size], np.ascontiguousarray(self.vectors[i : i + size])


def connect(uri: str) -> AbstractContextManager[MilvusClient]:
    """Connect to a Milvus to write to; a file of Milvus Lite is created if it does not exist.

    Raises:
        MilvusException: If it cannot be reached.
    """
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        # By default Milvus Lite buffers 128 MB, and takes 2 GB of memory to write them out.
        os.environ.setdefault("MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES", str(16 << 20))
        # pymilvus does without calls that Milvus Lite lacks; gRPC would log a traceback for each.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
    return connected(uri)


def write_to_milvus(
    client: MilvusClient, index: catalog.Index, items: ItemVectors, batch_size: int
) -> str:
    """Fill the collection of the items' space, and point the alias at it.

    A collection that a stopped run left incomplete is completed.

    Args:
        client: A connected client.
        index: The alias and the metric.
        items: The items to write.
        batch_size: Number of vectors in a request.

    Returns:
        The name of the collection.

    Raises:
        ArtifactError: If an id is too long for a collection.
    """
    name = f"{index.collection}_{items.space_id}"
    longest = max(items.ids, key=lambda i: len(i.encode()))
    if len(longest.encode()) > MAX_ID_BYTES:
        raise artifacts.ArtifactError(
            f"an item is called {longest[:40]}...: expected at most {MAX_ID_BYTES} bytes; "
            "train with a column of short ids (dssm: --doc-id)"
        )
    if not client.has_collection(name):
        _create(client, name, index.metric, items)
    # The count may not include the last batch yet; sending a batch again changes nothing.
    done = int(client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"])
    start = done - done % batch_size
    with tqdm(total=len(items.ids), initial=start, unit="item", disable=None, desc=name) as bar:
        for ids, vectors in items.batches(batch_size, start):
            client.upsert(name, [{"id": i, "vector": v} for i, v in zip(ids, vectors, strict=True)])
            bar.update(len(ids))
    client.load_collection(name)
    _point(client, index.collection, name)
    return name


def _create(client: MilvusClient, name: str, metric: str, items: ItemVectors) -> None:
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=items.vectors.shape[1])
    index_params = client.prepare_index_params()
    index_params.add_index("vector", index_type="AUTOINDEX", metric_type=metric)
    client.create_collection(
        name,
        schema=schema,
        index_params=index_params,
        properties={"space_id": items.space_id},
    )


def _point(client: MilvusClient, alias: str, collection: str) -> None:
    """Move the alias in one step: a search sees the old items or the new ones, never a mix."""
    if client.has_collection(alias):
        client.alter_alias(collection, alias)
    else:
        client.create_alias(collection, alias)


def write_to_file(items: ItemVectors, path: Path, batch_size: int) -> None:
    """Write ids and vectors to a file that appears whole or not at all.

    Args:
        items: The items to write.
        path: ``.npy`` (vectors; the ids go to ``.ids.json`` next to it), ``.parquet`` (columns id
            and vector) or ``.json`` (``{"id": [f, ...], ...}``).
        batch_size: Number of items in memory.
    """
    with replacing(path) as part:
        if path.suffix == ".npy":
            with part.open("wb") as array:  # given a path, numpy would append .npy to it
                np.save(array, items.vectors, allow_pickle=False)
            with replacing(path.with_suffix(".ids.json")) as ids_part:
                artifacts.write_json(ids_part, items.ids)
            return
        batches = tqdm(
            items.batches(batch_size),
            total=-(-len(items.ids) // batch_size),
            unit="batch",
            disable=None,
            desc=path.name,
        )
        if path.suffix == ".parquet":
            _write_parquet(part, batches, items.vectors.shape[1])
        else:
            _write_json(part, batches)


def _write_parquet(path: Path, batches: Iterable[tuple[list[str], Vectors]], dim: int) -> None:
    kind = pa.list_(pa.float32(), dim)
    schema = pa.schema([("id", pa.string()), ("vector", kind)])
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for ids, vectors in batches:
            column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), type=kind)
            writer.write_batch(pa.record_batch([pa.array(ids), column], schema=schema))


def _write_json(path: Path, batches: Iterable[tuple[list[str], Vectors]]) -> None:
    """Write one object, an item a line, without holding all of it in memory."""
    with path.open("wb") as file:
        separator = b"{"
        for ids, vectors in batches:
            for i, vector in zip(ids, vectors, strict=True):
                values = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
                file.write(b"%b%b:%b" % (separator, orjson.dumps(i), values))
                separator = b",\n"
        file.write(b"}\n")
