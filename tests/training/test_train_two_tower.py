"""The two-tower model: one run trains two towers that share an embedding space."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.examples import Example, load_handler, module, predict, train
from training import artifacts
from training.artifacts import IDS_FILE, VECTORS_FILE
from training.tasks.retrieval.world import (
    catalog,
    generate_interactions,
    interactions,
    item_probabilities,
    truth_path,
    users,
)

MODEL = "two_tower"


@pytest.fixture
def data() -> pd.DataFrame:
    """Draw a small table from the default world."""
    return interactions(1_500, seed=5)


@pytest.fixture
def example_of() -> Callable[[str], Example]:
    """Return a function that finds the default example of a model."""
    return lambda model: module(model).EXAMPLES[0]


def read_learned(folder: Path) -> tuple[bytes, bytes, str]:
    """Return the weights, the item vectors and the id of their space."""
    weights, vectors = (folder / name for name in ("two_tower_model.pt", VECTORS_FILE))
    return weights.read_bytes(), vectors.read_bytes(), artifacts.read_meta(folder)["space_id"]


def test_same_data_and_seed_give_the_same_space(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    first = read_learned(fit(data))
    assert read_learned(fit(data, version="v2")) == first
    for value, other in zip(first, read_learned(fit(data, "--seed", "1")), strict=True):
        assert value != other


def test_meta_holds_the_keys_that_other_services_read(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    folder = fit(data)
    meta = json.loads((folder / "two_tower_meta.json").read_text())
    assert meta["user_cols"] == ["user_age", "user_gender"]
    assert meta["item_cols"] == ["item_ctr", "item_cvr", "item_price"]
    assert meta["embed_dim"] == 64
    handler = load_handler("user_tower", folder)
    assert len(predict(handler, {"user_age": 30})) == 64


def test_exported_vectors_equal_those_that_item_tower_serves(
    artifact_folder: Callable[[Example], Path], example_of: Callable[[str], Example]
) -> None:
    folder = artifact_folder(example_of("item_tower"))
    vectors = np.load(folder / VECTORS_FILE, allow_pickle=False)
    ids = json.loads((folder / IDS_FILE).read_text())
    assert vectors.shape == (len(ids), 64)
    rows = catalog().set_index("item_id").loc[ids].to_dict("records")
    served = predict(load_handler("item_tower", folder), rows)
    assert served == pytest.approx(vectors, abs=1e-6)
    assert np.linalg.norm(served, axis=1) == pytest.approx(1, abs=1e-5)


def test_user_vector_finds_the_items_that_the_user_likes(
    artifact_folder: Callable[[Example], Path], example_of: Callable[[str], Example]
) -> None:
    folder = artifact_folder(example_of("user_tower"))
    ids = json.loads((folder / IDS_FILE).read_text())
    people = users()
    vectors = np.array(predict(load_handler("user_tower", folder), people.to_dict("records")))
    scores = vectors @ np.load(folder / VECTORS_FILE).T
    found = np.argsort(-scores, axis=1)[:, :10]
    order = catalog().reset_index().set_index("item_id").loc[ids, "index"].to_numpy()
    chosen, _ = item_probabilities()
    recall = np.take_along_axis(chosen[:, order], found, axis=1).sum(axis=1)
    ceiling = np.sort(chosen, axis=1)[:, -10:].sum(axis=1)
    assert recall.mean() > 0.8 * ceiling.mean()


def test_archives_share_a_space_and_leave_out_the_item_vectors(
    archive_file: Callable[[Example], Path], example_of: Callable[[str], Example]
) -> None:
    spaces = set()
    for model in ("two_tower", "user_tower", "item_tower"):
        with zipfile.ZipFile(archive_file(example_of(model))) as mar:
            spaces.add(json.loads(mar.read("two_tower_meta.json"))["space_id"])
            assert not {VECTORS_FILE, IDS_FILE} & set(mar.namelist())
    assert len(spaces) == 1


def test_log_q_correction_improves_the_hit_rate(fit: Callable[..., Path]) -> None:
    table = interactions(8_000, seed=6)
    flags = ("--epochs", "5", "--batch-size", "128")
    found = {}
    for version in ("log-q", "no-log-q"):
        folder = fit(table, *flags, f"--{version}", version=version)
        report = json.loads((folder / "metrics.json").read_text())["test"]
        found[version] = report["two_tower"]["hr_at_10"]
    assert found["log-q"] > report["popularity"]["hr_at_10"]
    assert found["log-q"] > found["no-log-q"] + 0.02


def test_items_without_an_id_are_identified_by_their_columns(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    folder = fit(data.drop(columns="item_id"))
    ids = json.loads((folder / IDS_FILE).read_text())
    assert ids == [str(i) for i in range(data["item_id"].nunique())]


def test_item_id_among_the_item_columns_is_embedded(
    fit: Callable[..., Path], data: pd.DataFrame
) -> None:
    handler = load_handler("item_tower", fit(data, "--item-cols", "item_price,item_id"))
    known, other, unknown, missing = predict(
        handler,
        [{"item_price": 50, "item_id": token} for token in ("item_0", "item_1", "?", None)],
    )
    assert len({tuple(v) for v in (known, other, unknown, missing)}) == 4
    assert handler.counts.out_of_vocabulary.tolist() == [0, 1]


def test_positives_alone_are_enough(fit: Callable[..., Path], data: pd.DataFrame) -> None:
    fit(data[data["label"] == 1])


BAD_TABLES: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], list[str], str]] = [
    (lambda t: t.drop(columns="label"), [], "missing column label"),
    (lambda t: t, ["--item-id-col", "sku"], "missing column sku"),
    (lambda t: t.assign(label=t.label * 5), [], "column label: expected 0 or 1, got 5"),
    (lambda t: t.assign(label=0), [], "column label: expected some value above 0"),
    (
        lambda t: t.assign(item_id=t.item_id.where(t.index != 7)),
        [],
        "valid split, column item_id: 1 of 300 rows are empty",
    ),
    (lambda t: t, ["--item-cols", "user_age"], "user_age: expected once among --user-cols"),
    (lambda t: t, ["--item-cols", ""], "expected at least one column in each"),
    (lambda t: t, ["--categorical", "colour"], "--categorical colour: expected names of"),
]


@pytest.mark.parametrize(("spoil", "flags", "message"), BAD_TABLES)
def test_bad_data_is_reported_before_training_starts(
    tmp_path: Path,
    data: pd.DataFrame,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    flags: list[str],
    message: str,
) -> None:
    path = tmp_path / "table.csv"
    spoil(data).to_csv(path, index=False)
    places = ["--data", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("two_tower", *places, *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_default_world_has_the_documented_ceiling(tmp_path: Path) -> None:
    path = tmp_path / "data" / "two_tower_data.csv"
    generate_interactions(path, n=20_000)
    table = pd.read_csv(path)
    assert {path, truth_path(path)} == set(path.parent.iterdir())
    truth = pd.read_parquet(truth_path(path))
    assert truth.groupby(["user_age", "user_gender"])["probability"].sum().to_numpy() == (
        pytest.approx(1)
    )
    chosen = table[table["label"] == 1]
    popular = chosen["item_id"].value_counts().index[:10]
    assert chosen["item_id"].isin(popular).mean() == pytest.approx(0.237, abs=0.01)
    best: Any = truth.sort_values("probability").groupby(["user_age", "user_gender"]).tail(10)
    hits = chosen.merge(best, on=["user_age", "user_gender", "item_id"])
    assert len(hits) / len(chosen) == pytest.approx(0.384, abs=0.01)
