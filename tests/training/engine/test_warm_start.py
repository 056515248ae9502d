"""``--init-from`` continues from the weights of an earlier version, on new data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xgboost as xgb

from handlers.feature import FIRST_TOKEN_INDEX, OOV_INDEX, Feature
from handlers.models.deepfm import WEIGHTS_FILE, DeepFM
from handlers.models.dssm import TextDSSM
from handlers.models.layers import RankingNetwork
from handlers.models.mmoe import MMoE
from handlers.models.text import TokenBags
from handlers.models.two_tower import TwoTower
from handlers.models.xgb import BOOSTER_FILE, TreeInputs
from handlers.models.youtube_dnn import YouTubeDNN
from handlers.schema import VOCABULARIES_FILE, FeatureSchema
from tests.examples import load_handler, predict, train
from training import artifacts
from training.data.extension import extended
from training.data.features import fit_schema
from training.data.sources import DataError
from training.engine import fit
from training.engine.warm_start import start_from
from training.engine.worker import TrainingError, seed_everything
from training.tasks.ranking.behavior_world import behaviors

FLAGS = ["--features", "user,item,price", "--categorical", "user,item", "--batch-size", "128"]


def clicks(n: int, seed: int, users: range, items: range) -> pd.DataFrame:
    """Draw clicks that depend on the user and on the item."""
    world, rng = np.random.default_rng(0), np.random.default_rng([1, seed])
    taste, appeal = world.normal(0, 1.5, 200), world.normal(0, 1.5, 100)
    user, item = rng.choice(users, n), rng.choice(items, n)
    label = rng.random(n) < 1 / (1 + np.exp(-taste[user] - appeal[item]))
    price = rng.lognormal(2, 0.5, n).round(2)
    return pd.DataFrame({"user": user, "item": item, "price": price, "label": label.astype(int)})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of runs on new data, beside which there is a version v1 of old data."""
    folder = tmp_path_factory.mktemp("warm")
    clicks(6_000, 0, range(150), range(80)).to_csv(folder / "old.csv", index=False)
    clicks(2_000, 1, range(50, 200), range(20, 100)).to_csv(folder / "new.csv", index=False)
    places = ["--artifacts-dir", str(folder / "artifacts"), "--data-path"]
    for model in ("deepfm", "xgb"):
        epochs = ["--epochs", "4", "--lr", "1e-2"] if model == "deepfm" else ["--epochs", "60"]
        flags = FLAGS if model == "deepfm" else FLAGS[:4]
        old = [*places, str(folder / "old.csv"), "--version", "v1"]
        assert train(model, *flags, *epochs, *old) == 0
    return [*places, str(folder / "new.csv")]


def vocabulary(folder: Path) -> dict[str, list[str]]:
    """Read the vocabularies of a version."""
    tokens: dict[str, list[str]] = json.loads((folder / VOCABULARIES_FILE).read_text())
    return tokens


def embeddings(network: RankingNetwork, field: int) -> torch.Tensor:
    """Return the embeddings of a field."""
    return torch.split(network.inputs.embedding.weight, network.inputs.sizes)[field]


def test_a_warm_start_is_better_than_a_cold_one_and_old_tokens_keep_their_index(
    places: list[str],
) -> None:
    new = [*FLAGS, *places, "--epochs", "1"]
    assert train("deepfm", *new, "--version", "cold") == 0
    assert train("deepfm", *new, "--version", "warm", "--init-from", "v1") == 0
    root = Path(places[1]) / "deepfm"
    auc = {v: artifacts.read_meta(root / v)["metrics"]["auc"] for v in ("cold", "warm")}
    assert auc["warm"] > auc["cold"] + 0.05

    old, warm, cold = (vocabulary(root / version) for version in ("v1", "warm", "cold"))
    for name in ("user", "item"):
        n_old = len(old[name])
        assert warm[name][:n_old] == old[name]
        assert set(warm[name]) == {*old[name], *cold[name]}
        assert len(warm[name]) > n_old
    meta = artifacts.read_meta(root / "warm")
    assert meta["hyperparameters"]["init_from"] == "v1"
    rows = [{"user": user, "item": 50, "price": 7.0} for user in (0, 199, 1000)]
    assert len(set(predict(load_handler("deepfm", root / "warm"), rows))) == 3


def test_a_history_keeps_the_vectors_of_its_items(tmp_path: Path) -> None:
    inputs, _ = behaviors(9_000, seed=0, n_users=200, items_per_category=2)
    inputs["item_id"] = "p" + inputs["item_id"].astype(str)
    inputs["history_item_ids"] = inputs["history_item_ids"].map(lambda ids: [f"p{i}" for i in ids])
    seen = inputs["item_id"].isin(sorted(inputs["item_id"].unique())[:30])
    inputs[seen][:5_000].to_parquet(tmp_path / "old.parquet")
    inputs[6_000:].to_parquet(tmp_path / "new.parquet")
    flags = ["--artifacts-dir", str(tmp_path), "--no-without-history", "--lr", "1e-2"]
    old = ["--data-path", str(tmp_path / "old.parquet"), "--epochs", "6", "--batch-size", "256"]
    assert train("din", *flags, *old, "--version", "v1") == 0
    new = [*flags, "--data-path", str(tmp_path / "new.parquet"), "--epochs", "1"]
    assert train("din", *new, "--version", "cold") == 0
    assert train("din", *new, "--version", "warm", "--init-from", "v1") == 0
    root = tmp_path / "din"
    auc = {v: artifacts.read_meta(root / v)["metrics"]["auc"] for v in ("cold", "warm")}
    assert auc["warm"] > auc["cold"] + 0.05
    before, after = vocabulary(root / "v1")["item_id"], vocabulary(root / "warm")["item_id"]
    assert (after[: len(before)], len(after)) == (before, 40)


@pytest.mark.parametrize("scaled", [[], ["--normalize"]], ids=["plain", "scaled"])
def test_trees_are_added_to_those_of_the_version(places: list[str], scaled: list[str]) -> None:
    new, base = [*FLAGS[:4], *places, *scaled, "--epochs", "20"], "v1"
    root = Path(places[1]) / "xgb"
    if scaled:
        base = "scaled"
        old = ["--data-path", str(root.parents[1] / "old.csv"), "--version", base]
        assert train("xgb", *new, *old, "--epochs", "60") == 0
    cold, warm = f"cold-{base}", f"warm-{base}"
    assert train("xgb", *new, "--version", cold) == 0
    assert train("xgb", *new, "--version", warm, "--init-from", base) == 0
    loss = {v: artifacts.read_meta(root / v)["metrics"]["logloss"] for v in (cold, warm)}
    assert loss[warm] < 0.97 * loss[cold]
    trees = {v: xgb.Booster(model_file=root / v / BOOSTER_FILE) for v in (base, warm)}
    n_before = trees[base].num_boosted_rounds()
    assert n_before < trees[warm].num_boosted_rounds() <= n_before + 20
    assert trees[warm][:n_before].get_dump() == trees[base].get_dump()
    before, now = (TreeInputs.load(root / version).encodings for version in (base, warm))
    for column, table in before.items():
        seen = table[:, 1] > 0
        assert np.array_equal(now[column][: len(table)][seen], table[seen])
        assert len(now[column]) > len(table)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--normalize"], "--init-from: expected --normalize False, got True"),
        (
            ["--objective", "rank:ndcg", "--group", "user"],
            "--init-from: expected --objective binary:logistic, got rank:ndcg",
        ),
    ],
)
def test_trees_that_learned_something_else_are_refused(
    places: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("xgb", *FLAGS[:4], *places, *flags, "--init-from", "v1") == 1
    assert message in capsys.readouterr().err


def test_a_folder_is_as_good_as_a_version(places: list[str], tmp_path: Path) -> None:
    root = Path(places[1]) / "deepfm"
    (root / "v1").rename(tmp_path / "v1")
    try:
        run = [*FLAGS, *places, "--epochs", "1", "--version", "moved"]
        assert train("deepfm", *run, "--init-from", str(tmp_path / "v1")) == 0
    finally:
        (tmp_path / "v1").rename(root / "v1")


def test_before_training_old_tokens_have_the_old_embeddings_and_new_ones_are_unknown() -> None:
    seed_everything(0)
    base, network = DeepFM([0, 6, 5]), DeepFM([0, 9, 5])
    base.inputs.fit(torch.rand(100, 3))
    start_from(network, base)
    for field in range(3):
        before, after = embeddings(base, field), embeddings(network, field)
        assert torch.equal(after[: len(before)], before)
        assert torch.equal(
            after[len(before) :], before[OOV_INDEX].expand(len(after) - len(before), -1)
        )
    assert torch.equal(network.inputs.mean, base.inputs.mean)
    matrix = torch.rand(50, 3)
    matrix[:, 1:] = torch.randint(FIRST_TOKEN_INDEX, 5, (50, 2)).float()
    assert torch.equal(network(matrix), base(matrix))
    unknown = matrix.clone()
    matrix[:, 1], unknown[:, 1] = 8, OOV_INDEX
    assert torch.equal(network(matrix), base(unknown))


NETWORKS: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (MMoE, {"cardinalities": [0, 6], "target_means": [0.0, 2.0]}, {"cardinalities": [0, 9]}),
    (
        TwoTower,
        {
            "user_dim": 2,
            "item_dim": 1,
            "user_cardinalities": [0, 6],
            "item_cardinalities": [7],
        },
        {"item_cardinalities": [9]},
    ),
    (YouTubeDNN, {"cardinalities": [0, 6], "n_items": 5}, {"cardinalities": [0, 8], "n_items": 9}),
]


@pytest.mark.parametrize(("network_class", "before", "more"), NETWORKS)
def test_every_network_starts_as_the_earlier_one(
    network_class: Callable[..., Any], before: dict[str, Any], more: dict[str, Any]
) -> None:
    base, network = network_class(**before).eval(), network_class(**before | more).eval()
    start_from(network, base)
    matrix = torch.rand(20, 2)
    matrix[:, 1] = torch.randint(0, 6, (20,)).float()
    if isinstance(base, TwoTower):
        items = torch.randint(0, 7, (10, 1)).float()
        assert torch.equal(network(matrix, items), base(matrix, items))
    elif isinstance(base, YouTubeDNN):
        history = torch.randint(0, 7, (20, 4))
        assert torch.equal(network(matrix, history), base(matrix, history))
        assert torch.equal(network.all_item_vectors()[:5], base.all_item_vectors())
    else:
        assert torch.equal(network(matrix), base(matrix))


def test_other_networks_are_refused() -> None:
    message = "--embedding-dim was 8, is 16; --hidden was 64 32, is 64$"
    with pytest.raises(TrainingError, match=message):
        start_from(DeepFM([0, 6], hidden=(64,)), DeepFM([0, 6], embedding_dim=8))
    with pytest.raises(TrainingError, match=r"--pooling was sum, is the default$"):
        start_from(DeepFM([(6, 3)]), DeepFM([(6, 3)], pooling="sum"))


def test_fixed_vectors_are_those_of_the_new_run() -> None:
    base, network = (DeepFM([0, n], pretrained={1: 3}) for n in (6, 9))
    network.inputs.set_pretrained(1, torch.ones(9, 3))
    start_from(network, base)
    table, earlier = (part.inputs.pretrained["0"] for part in (network, base))
    assert torch.equal(table.get_buffer("vectors"), torch.ones(9, 3))
    name = "projection.weight"
    assert torch.equal(table.get_parameter(name), earlier.get_parameter(name))


TABLE = pd.DataFrame({"a": ["x", "x", "y", "y", "y"], "n": [1.0, 2.0, 3.0, 4.0, 5.0]})
DRAFTS = [Feature("a", kind="category"), Feature("n")]


def test_a_schema_is_extended() -> None:
    base = fit_schema(TABLE, DRAFTS)
    table = pd.DataFrame({"a": ["z", "z", "z", "x", "x"], "n": [np.nan, 2.0, 9.0, 9.0, 9.0]})
    category, number = fit_schema(table, DRAFTS, base).features
    assert category.vocabulary == ("y", "x", "z")
    assert number.default is None
    assert number.train_range == (1.0, 9.0)


def test_a_category_that_was_hashed_stays_so() -> None:
    base = fit_schema(TABLE, [Feature("a", kind="category", hash_buckets=100), DRAFTS[1]])
    category = fit_schema(TABLE, DRAFTS, base).features[0]
    assert (category.hash_buckets, category.vocabulary) == (100, ())


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([Feature("a", kind="category")], "removed: n$"),
        ([*DRAFTS, Feature("m")], "added: m$"),
        ([DRAFTS[1], DRAFTS[0]], "in the order a,n$"),
        ([Feature("a", kind="multi", max_length=3), DRAFTS[1]], "a had kind category, has multi;"),
        (
            [Feature("a", kind="category", hash_buckets=8), DRAFTS[1]],
            "a had a vocabulary, has 8 hashes$",
        ),
    ],
)
def test_other_features_are_refused_by_name(new: list[Feature], message: str) -> None:
    base = FeatureSchema(DRAFTS)
    with pytest.raises(DataError, match=f"--init-from: expected the same features; {message}"):
        extended(base, FeatureSchema(new))


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("deepfm", ["--init-from", "v9"], "artifacts/deepfm has no such version; it has v1"),
        ("mmoe", ["--init-from", "v1"], "artifacts/mmoe has no such version; it has none"),
        ("deepfm", ["--init-from", "./v1"], "--init-from ./v1: no such folder"),
        ("item2vec", ["--init-from", "v1"], "gensim trains this model, from the start only"),
    ],
)
def test_an_unknown_version_is_refused_before_data_is_read(
    places: list[str],
    model: str,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(model, *places[:2], *flags, "--data-path", "nowhere.csv") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features", "user,price", "--categorical", "user"], "removed: item"),
        (["--embedding-dim", "8"], "--embedding-dim was 16, is 8"),
    ],
)
def test_other_flags_than_those_of_the_version_are_refused(
    places: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("deepfm", *FLAGS, *places, *flags, "--init-from", "v1") == 1
    assert message in capsys.readouterr().err


def test_a_version_of_another_model_is_refused(
    places: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"{places[1]}/xgb/v1"
    assert train("deepfm", *FLAGS, *places, "--init-from", other) == 1
    assert f"expected a folder with {WEIGHTS_FILE}, got {other}" in capsys.readouterr().err


def test_loops_take_the_version_to_start_from() -> None:
    seed_everything(0)
    rows = torch.rand(64, 2)
    rows[:, 1] = 2
    split = fit.WeightedRows(rows, rows[:, :1].round(), torch.ones(64))

    def loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return ((logits - targets[:, 0]) ** 2).mean()

    base, config = DeepFM([0, 4]), fit.FitConfig(epochs=1, lr=1e-9)
    network = DeepFM([0, 5])
    fit.fit(network, loss, split, split, config, base)
    assert torch.allclose(network(rows), base.eval()(rows), atol=1e-5)


def test_the_weights_of_known_words_are_kept_and_new_words_get_theirs() -> None:
    base, network = TextDSSM(embed_dim=4), TextDSSM(embed_dim=4)
    base.query.fit(TokenBags.of(["red shoes", "red hats"]))
    network.query.fit(TokenBags.of(["red shoes", "blue shoes", "blue hats"]))
    new = network.query.idf.clone()
    start_from(network, base)
    known = base.query.idf > 0
    assert torch.equal(network.query.idf[known], base.query.idf[known])
    assert torch.equal(network.query.idf[~known], new[~known])
    assert (network.query.idf > 0).sum() > known.sum()
