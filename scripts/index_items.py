"""Write item vectors to Milvus, or to a file: ``python -m scripts.index_items``.

A tower and an index belong together: vectors of two training runs cannot be compared. So each run's
vectors go to a collection of their own, named after the run's ``space_id``, and the name that
callers search is an alias that moves when the collection is complete.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet
import tyro
from pymilvus import DataType, MilvusClient, MilvusException
from tqdm import tqdm

from archive import catalog
from handlers import logs
from serving.milvus import connected
from training import artifacts
from training.artifacts import IDS_FILE, VECTORS_FILE

logger = logging.getLogger(__name__)

MAX_ID_BYTES = 512

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Config:
    """Write the item vectors of trained models to Milvus, or to files.

    A stopped run goes on where it was. The token of a server comes from MILVUS_TOKEN.

    Attributes:
        model: Names separated by commas; every model with an index by default.
        version: The newest of each model by default.
        uri: A file of Milvus Lite, or http://host:19530 of a server.
        format: Milvus, or a file that holds ids and vectors.
        out: Folder of those files.
        batch_size: Vectors sent at once.
        artifacts_dir: Folder that training wrote to.
    """

    model: str = ""
    version: str = ""
    uri: str = "data/milvus.db"
    format: Literal["milvus", "npy", "parquet", "json"] = "milvus"
    out: Path = Path("data/vectors")
    batch_size: int = 1000
    artifacts_dir: Path = artifacts.ARTIFACTS


@dataclass(frozen=True)
class ItemVectors:
    """The exported items of one training run.

    Attributes:
        ids: Of the items, in the order of the vectors.
        vectors: float32 [items, D], mapped from the file, not read into memory.
        space_id: Of the towers that made them.
    """

    ids: list[str]
    vectors: Vectors
    space_id: str

    @classmethod
    def load(cls, folder: Path) -> ItemVectors:
        """Open the export of an artifact folder.

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
        """Ids and vectors, ``size`` at a time, from item ``start`` on."""
        for i in range(start, len(self.ids), size):
            yield self.ids[i : i + size], np.ascontiguousarray(self.vectors[i : i + size])


def index(client: MilvusClient, target: catalog.Index, items: ItemVectors, batch_size: int) -> str:
    """Fill a collection of the items' space and point the alias at it.

    Returns:
        The name of the collection.

    Raises:
        ArtifactError: If an id is longer than a collection takes.
    """
    name = f"{target.collection}_{items.space_id}"
    longest = max(items.ids, key=lambda i: len(i.encode()))
    if len(longest.encode()) > MAX_ID_BYTES:
        raise artifacts.ArtifactError(
            f"an item is called {longest[:40]}...: expected at most {MAX_ID_BYTES} bytes; "
            "train with a column of short ids (dssm: --doc-id)"
        )
    if not client.has_collection(name):
        _create(client, name, target.metric, items)
    # Upserts of the last batch may have been counted or not; sending it again changes nothing.
    done = int(client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"])
    start = done - done % batch_size
    with tqdm(total=len(items.ids), initial=start, unit="item", disable=None, desc=name) as bar:
        for ids, vectors in items.batches(batch_size, start):
            client.upsert(name, [{"id": i, "vector": v} for i, v in zip(ids, vectors, strict=True)])
            bar.update(len(ids))
    client.load_collection(name)
    _point(client, target.collection, name)
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
    """Move the alias in one step: whoever searches sees the old items or the new, never a mix."""
    if client.has_collection(alias):
        client.alter_alias(collection, alias)
    else:
        client.create_alias(collection, alias)


def export(items: ItemVectors, path: Path, batch_size: int) -> None:
    """Write ids and vectors to a file that appears whole or not at all.

    Args:
        items: What to write.
        path: ``.npy`` (vectors; the ids go to ``.ids.json`` beside it), ``.parquet`` (columns id
            and vector) or ``.json`` (``{"id": [f, ...], ...}``).
        batch_size: Items in memory at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    if path.suffix == ".npy":
        with part.open("wb") as array:  # a path would get .npy at its end
            np.save(array, items.vectors, allow_pickle=False)
        ids_part = path.with_name(f".{path.stem}.ids.json.part")
        artifacts.write_json(ids_part, items.ids)
        ids_part.replace(path.with_suffix(".ids.json"))
        part.replace(path)
        return
    bar = tqdm(
        items.batches(batch_size),
        total=-(-len(items.ids) // batch_size),
        unit="batch",
        disable=None,
        desc=path.name,
    )
    if path.suffix == ".parquet":
        kind = pa.list_(pa.float32(), items.vectors.shape[1])
        schema = pa.schema([("id", pa.string()), ("vector", kind)])
        with pa.parquet.ParquetWriter(part, schema) as writer:
            for ids, vectors in bar:
                column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), type=kind)
                writer.write_batch(pa.record_batch([pa.array(ids), column], schema=schema))
    else:
        with part.open("wb") as file:
            separator = b"{"
            for ids, vectors in bar:
                for i, vector in zip(ids, vectors, strict=True):
                    values = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
                    file.write(b"%b%b:%b" % (separator, orjson.dumps(i), values))
                    separator = b",\n"
            file.write(b"}\n")
    part.replace(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    config = tyro.cli(Config, args=argv)
    logs.to_stderr(logging.WARNING)
    if config.batch_size < 1:
        logger.error("--batch-size %d: expected 1 or more", config.batch_size)
        return 2
    try:
        names = config.model.split(",") if config.model else catalog.model_names()
        models = [catalog.get(name) for name in names]
        if unindexed := [m.name for m in models if m.index is None and config.model]:
            raise catalog.UnknownModelError(f"{', '.join(unindexed)}: has no index")
        # Towers of one training run share their items.
        targets = {m.artifacts: m.index for m in models if m.index is not None}
        with _connected(config.uri) if config.format == "milvus" else nullcontext() as client:
            for trained, target in targets.items():
                folder = artifacts.find(trained, config.version or None, config.artifacts_dir)
                items = ItemVectors.load(folder)
                if client is not None:
                    name = index(client, target, items, config.batch_size)
                    print(f"{target.collection} -> {name}: {len(items.ids):,} items")
                else:
                    path = config.out / f"{target.collection}.{config.format}"
                    export(items, path, config.batch_size)
                    print(f"{path}: {len(items.ids):,} items, space {items.space_id}")
    except (artifacts.ArtifactError, catalog.UnknownModelError, MilvusException) as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.warning("interrupted; run it again to go on")
        return 130
    return 0


def _connected(uri: str) -> AbstractContextManager[MilvusClient]:
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        # By default Milvus Lite lets 128 MB gather, and takes 2 GB to write them out.
        os.environ.setdefault("MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES", str(16 << 20))
        # It lacks calls that pymilvus does without, and gRPC would log a traceback for each.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
    return connected(uri)


if __name__ == "__main__":
    sys.exit(main())
