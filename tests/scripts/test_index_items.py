"""Item vectors in a real Milvus Lite, and in files."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymilvus import MilvusClient

from archive import catalog
from scripts import index_items
from scripts.index_items import ItemVectors
from serving import milvus as vectors
from training import artifacts
from training.artifacts import IDS_FILE, VECTORS_FILE, ArtifactError

TARGET = catalog.Index("item_embeddings", "IP")
N_ITEMS, DIM = 250, 8


def make_items(space_id: str, seed: int = 0, n: int = N_ITEMS) -> ItemVectors:
    vectors = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ItemVectors([f"item_{i}" for i in range(n)], vectors, space_id)


def write_artifacts(root: Path, n_vectors: int) -> None:
    """The vectors of two items, or another number."""
    folder = root / "two_tower" / "v1"
    folder.mkdir(parents=True)
    np.save(folder / VECTORS_FILE, np.zeros((n_vectors, DIM), dtype=np.float32))
    (folder / IDS_FILE).write_text('["a", "b"]')
    (folder / "two_tower_meta.json").write_text('{"files": {}, "space_id": "s"}')


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MilvusClient]:
    with vectors.connected(str(tmp_path / "milvus.db")) as client:
        yield client


def nearest(client: MilvusClient, vector: np.ndarray) -> str:
    [[hit]] = client.search(TARGET.collection, [vector.tolist()], limit=1)
    return str(hit["id"])


def test_an_item_is_its_own_nearest_neighbour(client: MilvusClient) -> None:
    items = make_items("first")
    index_items.index(client, TARGET, items, batch_size=100)
    assert nearest(client, items.vectors[42]) == "item_42"


def test_a_new_space_takes_the_alias_over_and_leaves_the_old_collection(
    client: MilvusClient,
) -> None:
    first, second = make_items("first"), make_items("second", seed=1)
    index_items.index(client, TARGET, first, batch_size=100)
    index_items.index(client, TARGET, second, batch_size=100)
    assert nearest(client, second.vectors[7]) == "item_7"
    described = client.describe_collection(TARGET.collection)
    assert described["properties"]["space_id"] == "second"
    assert client.has_collection("item_embeddings_first")


def test_an_id_that_is_too_long_is_told_before_anything_is_made(client: MilvusClient) -> None:
    items = make_items("first")
    items.ids[-1] = "ü" * 300
    with pytest.raises(ArtifactError, match=r"expected at most 512 bytes; .* --doc-id"):
        index_items.index(client, TARGET, items, batch_size=100)
    assert client.list_collections() == []


def test_a_run_that_breaks_leaves_the_alias_and_the_next_one_goes_on(
    client: MilvusClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_items("first"), make_items("second", seed=1)
    index_items.index(client, TARGET, first, batch_size=100)
    sent: list[int] = []
    upsert = client.upsert

    def breaks_at_the_third_batch(name: str, rows: list[dict[str, object]]) -> None:
        if len(sent) == 2:
            raise ConnectionError("broken")
        sent.append(len(rows))
        upsert(name, rows)

    monkeypatch.setattr(client, "upsert", breaks_at_the_third_batch)
    with pytest.raises(ConnectionError):
        index_items.index(client, TARGET, second, batch_size=100)
    assert client.describe_collection(TARGET.collection)["properties"]["space_id"] == "first"

    sent = [0, 0, 0]  # no third batch will break any more
    index_items.index(client, TARGET, second, batch_size=100)
    assert sent == [0, 0, 0, 50]
    assert nearest(client, second.vectors[249]) == "item_249"


@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".json"])
def test_a_file_holds_every_id_with_its_vector(tmp_path: Path, suffix: str) -> None:
    items = make_items("any")
    path = tmp_path / f"vectors{suffix}"
    index_items.export(items, path, batch_size=100)
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
    index_items.export(make_items("first"), path, batch_size=100)

    def breaks(half_done: Path, _: object) -> None:
        half_done.write_text("[")
        raise OSError("disk full")

    monkeypatch.setattr(artifacts, "write_json", breaks)
    with pytest.raises(OSError, match="disk full"):
        index_items.export(make_items("second", seed=1, n=3), path, batch_size=100)
    assert len(json.loads(path.with_suffix(".ids.json").read_text())) == N_ITEMS
    assert len(np.load(path, allow_pickle=False)) == N_ITEMS


def test_milvus_lite_says_nothing_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_artifacts(tmp_path, n_vectors=2)
    flags = ["--model", "two_tower", "--artifacts-dir", str(tmp_path)]
    assert index_items.main([*flags, "--uri", str(tmp_path / "milvus.db")]) == 0
    told = capfd.readouterr()
    assert told.out == "item_embeddings -> item_embeddings_s: 2 items\n"
    assert "Traceback" not in told.err


def test_batch_size_makes_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert index_items.main(["--batch-size", "0"]) == 2
    assert "--batch-size 0: expected 1 or more" in capsys.readouterr().err


def test_vectors_that_do_not_match_their_ids_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_artifacts(tmp_path, n_vectors=3)
    status = index_items.main(
        ["--model", "two_tower", "--artifacts-dir", str(tmp_path), "--format", "json"]
    )
    assert status == 1
    assert "expected a vector for each of 2 ids" in capsys.readouterr().err


def test_a_tower_of_another_space_than_the_live_index_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "live.db")
    with vectors.connected(uri) as client:
        index_items.index(client, TARGET, make_items("live"), batch_size=100)
    matching = vectors.Tower("user_tower", "v1", "live", TARGET.collection)
    stale = vectors.Tower("two_tower", "v1", "old", TARGET.collection)
    missing = vectors.Tower("dssm", "v2", "any", "dssm_docs")
    assert vectors.mismatches(uri, [matching]) == []
    assert vectors.mismatches(uri, [matching, stale, missing]) == [
        "two_tower v1 embeds in space old, item_embeddings holds live; run: make index",
        "dssm v2 embeds in space any, dssm_docs holds nothing; run: make index",
    ]


@pytest.mark.parametrize("uri", ["http://milvus:port", "nowhere/live", "tcp:/milvus"])
def test_an_index_uri_that_makes_no_sense_is_told(uri: str) -> None:
    [told] = vectors.mismatches(uri, [])
    assert told.startswith(f"INDEX_URI={uri}: cannot be read: ")


def test_only_archives_with_a_space_and_a_collection_are_towers() -> None:
    ranker = {"model_name": "xgb", "model_version": "v1", "space_id": None, "collection": None}
    tower = ranker | {"model_name": "dssm", "space_id": "s", "collection": "dssm_docs"}
    assert vectors.towers([ranker, {}, tower]) == [vectors.Tower("dssm", "v1", "s", "dssm_docs")]
