"""Item vectors in a real Milvus Lite, and in files."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymilvus import MilvusClient

from archive import catalog
from archive.item_vectors import ItemVectors, write_to_file, write_to_milvus
from serving import milvus
from training import artifacts
from training.artifacts import ArtifactError

INDEX = catalog.Index("item_embeddings", "IP")
N_ITEMS, DIM = 250, 8


def make_items(space_id: str, seed: int = 0, n: int = N_ITEMS) -> ItemVectors:
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ItemVectors([f"item_{i}" for i in range(n)], vectors, space_id)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MilvusClient]:
    with milvus.connected(str(tmp_path / "milvus.db")) as client:
        yield client


def nearest(client: MilvusClient, vector: np.ndarray) -> str:
    [[hit]] = client.search(INDEX.collection, [vector.tolist()], limit=1)
    return str(hit["id"])


def test_an_item_is_its_own_nearest_neighbour(client: MilvusClient) -> None:
    items = make_items("first")
    write_to_milvus(client, INDEX, items, batch_size=100)
    assert nearest(client, items.vectors[42]) == "item_42"


def test_a_new_space_takes_the_alias_over_and_leaves_the_old_collection(
    client: MilvusClient,
) -> None:
    first, second = make_items("first"), make_items("second", seed=1)
    write_to_milvus(client, INDEX, first, batch_size=100)
    write_to_milvus(client, INDEX, second, batch_size=100)
    assert nearest(client, second.vectors[7]) == "item_7"
    described = client.describe_collection(INDEX.collection)
    assert described["properties"]["space_id"] == "second"
    assert client.has_collection("item_embeddings_first")


def test_an_id_that_is_too_long_is_refused_before_anything_is_created(client: MilvusClient) -> None:
    items = make_items("first")
    items.ids[-1] = "ü" * 300
    with pytest.raises(ArtifactError, match=r"expected at most 512 bytes; .* --doc-id"):
        write_to_milvus(client, INDEX, items, batch_size=100)
    assert client.list_collections() == []


def test_a_run_that_breaks_leaves_the_alias_and_the_next_one_continues(
    client: MilvusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_items("first"), make_items("second", seed=1)
    write_to_milvus(client, INDEX, first, batch_size=100)
    sent: list[int] = []
    upsert = client.upsert

    def break_at_the_third_batch(name: str, rows: list[dict[str, object]]) -> None:
        if len(sent) == 2:
            raise ConnectionError("broken")
        sent.append(len(rows))
        upsert(name, rows)

    monkeypatch.setattr(client, "upsert", break_at_the_third_batch)
    with pytest.raises(ConnectionError):
        write_to_milvus(client, INDEX, second, batch_size=100)
    assert client.describe_collection(INDEX.collection)["properties"]["space_id"] == "first"

    sent = [0, 0, 0]  # from now on no batch is the third
    write_to_milvus(client, INDEX, second, batch_size=100)
    assert sent == [0, 0, 0, 50]
    assert nearest(client, second.vectors[249]) == "item_249"


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".json"])
def test_a_file_holds_every_id_with_its_vector(tmp_path: Path, suffix: str) -> None:
    items = make_items("any")
    path = tmp_path / f"vectors{suffix}"
    write_to_file(items, path, batch_size=100)
    if suffix == ".npy":
        ids = json.loads(path.with_suffix(".ids.json").read_text())
        vectors = np.load(path, allow_pickle=False)
    elif suffix == ".parquet":
        table = pd.read_parquet(path)
        ids, vectors = list(table["id"]), np.stack(list(table["vector"]))
    else:
        table = json.loads(path.read_text())
        ids, vectors = list(table), np.array(list(table.values()), dtype=np.float32)
    assert ids == items.ids
    np.testing.assert_array_equal(vectors, items.vectors)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_export_that_breaks_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vectors.npy"
    write_to_file(make_items("first"), path, batch_size=100)

    def break_off(half_done: Path, _: object) -> None:
        half_done.write_text("[")
        raise OSError("disk full")

    monkeypatch.setattr(artifacts, "write_json", break_off)
    with pytest.raises(OSError, match="disk full"):
        write_to_file(make_items("second", seed=1, n=3), path, batch_size=100)
    assert len(json.loads(path.with_suffix(".ids.json").read_text())) == N_ITEMS
    assert len(np.load(path, allow_pickle=False)) == N_ITEMS


def test_a_tower_of_another_space_than_the_live_index_is_reported(tmp_path: Path) -> None:
    uri = str(tmp_path / "live.db")
    with milvus.connected(uri) as client:
        write_to_milvus(client, INDEX, make_items("live"), batch_size=100)
    matching = milvus.Tower("user_tower", "v1", "live", INDEX.collection)
    stale = milvus.Tower("two_tower", "v1", "old", INDEX.collection)
    missing = milvus.Tower("dssm", "v2", "any", "dssm_docs")
    assert milvus.mismatches(uri, [matching]) == []
    assert milvus.mismatches(uri, [matching, stale, missing]) == [
        "two_tower v1 embeds in space old, item_embeddings holds live; run: make index",
        "dssm v2 embeds in space any, dssm_docs holds nothing; run: make index",
    ]


@pytest.mark.parametrize("uri", ["http://milvus:port", "nowhere/live", "tcp:/milvus"])
def test_an_index_uri_that_cannot_be_read_is_reported(uri: str) -> None:
    [message] = milvus.mismatches(uri, [])
    assert message.startswith(f"INDEX_URI={uri}: cannot be read: ")


def test_only_archives_with_a_space_and_a_collection_are_towers() -> None:
    ranker = {"model_name": "xgb", "model_version": "v1", "space_id": None, "collection": None}
    tower = ranker | {"model_name": "dssm", "space_id": "s", "collection": "dssm_docs"}
    assert milvus.towers([ranker, {}, tower]) == [milvus.Tower("dssm", "v1", "s", "dssm_docs")]
