"""DSSM: wrapped queries, texts, exported documents, pairs with and without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from handlers.models.text import TokenBags, buckets, ragged, search_terms
from serving.testing import numbers
from tests.examples import Example, close, load_handler, predict, request, train
from tests.examples.dssm import FEATURES, TEXTS
from training import artifacts
from training.metrics import ranking as metrics
from training.metrics.retrieval import expected_ranks, retrieval_report
from training.tasks.search.world import QUERY_COLUMNS, feature_pairs, text_pairs

ArtifactFolder = Callable[[Example], Path]
Fit = Callable[..., Path]

QUICK = ("--epochs", "1", "--batch-size", "64", "--max-docs", "100")


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Return a function that trains on a table and returns the artifact folder."""

    def run(table: pd.DataFrame, *flags: str, version: str = "v1") -> Path:
        path = tmp_path / "table.parquet"
        table.to_parquet(path)
        places = ["--data", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
        assert train("dssm", *QUICK, *places, "--version", version, *flags) == 0
        return tmp_path / "artifacts" / "dssm" / version

    return run


def report(folder: Path) -> dict[str, float]:
    """Read the metrics on the test split."""
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text())["test"]["dssm"]
    return metrics


def exported(folder: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Read the ids and vectors of the exported documents."""
    ids = json.loads((folder / "item_ids.json").read_text())
    return ids, np.load(folder / "item_vectors.npy", allow_pickle=False)


def test_worlds_have_the_documented_ceilings() -> None:
    pairs, truth = feature_pairs(5_000, seed=0)
    labels, probabilities = pairs["label"].to_numpy(), truth["label"].to_numpy()
    assert metrics.auc(labels, probabilities) == pytest.approx(0.949, abs=0.004)
    assert metrics.calibration_ratio(labels, probabilities) == pytest.approx(1, abs=0.01)
    _, ranks = text_pairs(4_000, seed=0)
    ceiling = retrieval_report(ranks["rank"].to_numpy(), (10,))
    assert ceiling["hr_at_10"] == pytest.approx(0.89, abs=0.015)


def test_served_queries_find_the_exported_documents(
    artifact_folder: ArtifactFolder, data_folder: Callable[[Example], Path]
) -> None:
    folder = artifact_folder(TEXTS)
    ids, docs = exported(folder)
    test = pd.read_csv(data_folder(TEXTS) / "test.csv")
    rows = [{"query_features": {"query": text}} for text in test["query"]]
    queries = np.array(predict(load_handler("dssm", folder), rows))
    targets = pd.Index(ids).get_indexer(pd.Index(test["doc_id"]))
    ranks = expected_ranks(queries @ docs.T, targets)
    assert retrieval_report(ranks, (10,))["hr_at_10"] == pytest.approx(report(folder)["hr_at_10"])


@pytest.mark.parametrize("example", [FEATURES, TEXTS], ids=str)
def test_probabilities_are_calibrated_and_rise_with_the_cosine(
    example: Example, artifact_folder: ArtifactFolder
) -> None:
    folder = artifact_folder(example)
    assert artifacts.read_meta(folder)["calibration"]["slope"] > 0
    assert report(folder)["calibration_ratio"] == pytest.approx(1, abs=0.1)


def test_wrapped_bare_and_vector_rows_are_the_same_query(artifact_folder: ArtifactFolder) -> None:
    handler = load_handler("dssm", artifact_folder(FEATURES))
    values = [0.5, -1.0, 2.0, 0.25, 0.0, 1.5]
    query = dict(zip(QUERY_COLUMNS, values, strict=True))
    vectors = predict(handler, [query, {"query_features": query}, values])
    assert dict(numbers(vectors)) == close([vectors[0]] * 3)
    assert len(predict(handler, [query])) == len(vectors[0]) == 64
    texts = load_handler("dssm", artifact_folder(TEXTS))
    vectors = predict(texts, [{"query": "duke"}, {"query_features": {"query": "DUKE!"}}, ["duke"]])
    assert dict(numbers(vectors)) == close([vectors[0]] * 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query_features": {"query_1": "abc"}}, "data[0].query_features.query_1: expected a numb"),
        ({"query_features": [1]}, "data[0].query_features: expected an object, got [1]"),
        ({"query_1": True}, "data[0].query_1: expected a number, got true"),
    ],
)
def test_error_names_the_bad_query(artifact_folder: ArtifactFolder, row: Any, message: str) -> None:
    handler = load_handler("dssm", artifact_folder(FEATURES))
    [(status, body)], _ = handler.answer([request([row])])
    assert status == 400
    assert message in json.loads(body)["message"]


def test_text_without_a_known_token_is_the_zero_vector_and_counted(
    artifact_folder: ArtifactFolder,
) -> None:
    handler = load_handler("dssm", artifact_folder(TEXTS))
    unknown = next(w for w in map(chr, range(0x4E00, 0x9FFF)) if not has_known_token(handler, w))
    vectors = predict(handler, [{"query": f"{unknown} {unknown}"}, {"query": "?!"}, {}])
    assert vectors == [[0.0] * 64] * 3
    assert handler.counts.out_of_vocabulary.tolist() == [2]
    assert handler.counts.missing.tolist() == [1]


def has_known_token(handler: Any, word: str) -> bool:
    """Return whether training saw a token in one of the word's buckets."""
    return any(handler.known[bucket] for bucket in buckets(word))


def test_same_data_and_seed_give_the_same_weights_vectors_and_space(fit: Fit) -> None:
    table = text_pairs(300, seed=1)[0]
    first, again = fit(table, "--text"), fit(table, "--text", version="v2")
    other = fit(table, "--text", "--seed", "1", version="v3")
    for name in ("dssm_model.pt", "item_vectors.npy", "item_ids.json"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    spaces = [artifacts.read_meta(folder)["space_id"] for folder in (first, again, other)]
    assert spaces[0] == spaces[1] != spaces[2]


def test_labeled_pairs_without_lists_are_enough(fit: Fit) -> None:
    pairs = feature_pairs(6_000, seed=1)[0].iloc[::10]  # one row per query
    folder = fit(pairs, "--epochs", "6")
    assert report(folder)["auc"] > 0.85


def test_pairs_without_labels_are_all_relevant(fit: Fit) -> None:
    pairs = feature_pairs(500, seed=1)[0]
    matches = pairs[pairs["label"] == 1].drop(columns=["label", "doc_id"])
    folder = fit(matches, "--epochs", "4")
    # A row names one of hundreds of relevant documents, so the oracle's HR@10 is only about .025.
    assert report(folder)["auc"] > 0.65
    ids, docs = exported(folder)
    assert len(ids) == len(docs) == len(set(ids))
    assert ids[0].count(",") == 5  # a document without an id is identified by its values


def test_categories_and_missing_cells_can_be_learned_from(fit: Fit) -> None:
    rng = np.random.default_rng(0)
    n = 6_000
    country, topic = rng.integers(5, size=n), rng.integers(5, size=n)
    table = pd.DataFrame(
        {
            "country": [f"c{i}" for i in country],
            "length": np.where(rng.random(n) < 0.1, np.nan, rng.random(n)),
            "topic": topic,
            "clicked": (rng.random(n) < np.where(country == topic, 0.9, 0.1)).astype(int),
        }
    )
    columns = ["--query-cols", "country,length", "--doc-cols", "topic", "--label", "clicked"]
    folder = fit(table, *columns, "--categorical", "country,topic", "--epochs", "6")
    assert report(folder)["auc"] > 0.75  # of .83
    ids, _ = exported(folder)
    assert sorted(ids) == ["0", "1", "2", "3", "4"]
    handler = load_handler("dssm", folder)
    predict(handler, [{"country": "nowhere"}, {"query_features": {"country": "c1", "length": 1}}])
    assert handler.counts.out_of_vocabulary.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text"], "missing column query (did you mean query_"),
        (["--text", "--query-cols", "query_1,query_2"], "--query-cols: expected one column with"),
        (["--query-cols", "query_features"], "--query-cols query_features: the name is reserved"),
        (["--query-cols", "query_1,qury_2"], "missing column qury_2 (did you mean query_2?)"),
        (["--query-cols", "query_1,query_1"], "expected each column once, got query_1 again"),
        (["--doc-cols", "doc_1,doc_id"], "doc_id: is an id in this data; name it in --categorical"),
        (["--categorical", "doc_id"], "--categorical doc_id: expected names of --query-cols"),
        (["--label", "clicked"], "missing column clicked"),
        (["--doc-id", "docid"], "missing column docid; leave --doc-id out"),
        (["--label", "doc_1"], "column doc_1: expected 0 or 1, got"),
    ],
)
def test_unusable_data_is_refused_with_the_reason(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.csv"
    feature_pairs(20, seed=1)[0].to_csv(path, index=False)
    places = ["--data-path", str(path), "--artifacts-dir", str(tmp_path / "artifacts")]
    assert train("dssm", *places, *flags) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_words_have_the_same_hashes_on_every_machine() -> None:
    assert search_terms("Card_arrival: it's LATE") == ["card", "arrival", "it", "s", "late"]
    assert search_terms("Où: CAFÉ_3") == ["où", "café", "3"]
    assert search_terms("हिन्दी किताब") == ["हिन्दी", "किताब"]
    assert search_terms("iPhone手机壳!") == ["iphone", "手", "机", "壳", "手机", "机壳"]
    assert buckets("card") == (19685, 11340, 26269, 17968, 22052)


def test_bags_can_be_indexed() -> None:
    bags = TokenBags.of(["one two", "", "three", "four five six"])
    selected = bags[torch.tensor([3, 1, 0])]
    expected = TokenBags.of(["four five six", "", "one two"])
    assert selected.tokens.equal(expected.tokens)
    assert selected.offsets.equal(expected.offsets)
    places, owner = ragged(torch.tensor([2, 0, 3]), torch.tensor([2, 1, 0]))
    assert (places.tolist(), owner.tolist()) == ([2, 3, 4, 0, 1], [0, 0, 0, 2, 2])
