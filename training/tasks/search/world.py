"""The default data of DSSM: searches in a catalog of documents, with a known ceiling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from training.folders import writing_folder
from training.metrics.retrieval import expected_ranks

QUERIES: Mapping[str, int] = {"train": 15_000, "valid": 2_000, "test": 5_000}
TEXT_QUERIES: Mapping[str, int] = {"train": 15_000, "valid": 1_500, "test": 4_000}

N_COLUMNS = 6
QUERY_COLUMNS = tuple(f"query_{i}" for i in range(1, N_COLUMNS + 1))
DOC_COLUMNS = tuple(f"doc_{i}" for i in range(1, N_COLUMNS + 1))

_N_DOCS = 1_000
_N_LATENT = 4
_DOCS_SHOWN = 10

_N_TEXTS = 400
_N_TOPICS, _TOPIC_WORDS, _STOP_WORDS = 20, 50, 30
_TITLE_WORDS, _QUERY_WORDS = 12, 5
_STOP_SHARE = 0.3

_WORLD_SEED = 0
_SEEDS = {"train": 1, "valid": 2, "test": 3}

Array = npt.NDArray[Any]


def feature_pairs(n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw queries and documents that are columns of numbers, with a label for each pair.

    The probability of the label depends on the angle between a linear image of the query and one of
    the document. Neither a single column nor a linear model of all columns can predict it.

    Args:
        n: Number of queries; each is shown ten documents.
        seed: Seed of the draw.

    Returns:
        The inputs (``query_1``..., ``doc_id``, ``doc_1``..., and ``label``, 1 for a relevant
        document) and the truth (the probability of the label), 10 n rows each.
    """
    world = np.random.default_rng(_WORLD_SEED)
    docs = world.normal(size=(_N_DOCS, N_COLUMNS)).round(4)
    query_map, doc_map = world.normal(size=(2, N_COLUMNS, _N_LATENT))
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(n, N_COLUMNS)).round(4).repeat(_DOCS_SHOWN, axis=0)
    shown = rng.random((n, _N_DOCS)).argpartition(_DOCS_SHOWN)[:, :_DOCS_SHOWN].ravel()
    left, right = queries @ query_map, docs[shown] @ doc_map
    cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    probability = expit(8 * cosine - 1)
    inputs = pd.concat(
        [
            pd.DataFrame(queries, columns=QUERY_COLUMNS),
            pd.DataFrame({"doc_id": [f"doc_{i}" for i in shown]}),
            pd.DataFrame(docs[shown], columns=DOC_COLUMNS),
            pd.DataFrame({"label": (rng.random(len(shown)) < probability).astype(np.int64)}),
        ],
        axis=1,
    )
    return inputs, pd.DataFrame({"label": probability})


def text_pairs(n: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw documents that are texts and queries that were written to find them.

    A document is a mixture of topics. Its searchers write about the same topics but prefer other
    words than its author, so that shared words find only some documents.

    Args:
        n: Number of queries.
        seed: Seed of the draw.

    Returns:
        The inputs (``query``, ``doc_id``, ``doc``) and the truth (``rank`` of the document by its
        probability given the query), n rows each.
    """
    world = np.random.default_rng(_WORLD_SEED)
    words = _words(world)
    mixtures = world.dirichlet(np.full(_N_TOPICS, 0.1), size=_N_TEXTS)  # [docs, topics]
    author, searcher = _dialect(world), _dialect(world)  # [topics, words]
    titles = [_write(world, words, mixture @ author, _TITLE_WORDS) for mixture in mixtures]
    popularity = np.arange(1, _N_TEXTS + 1) ** -0.5
    popularity /= popularity.sum()

    rng = np.random.default_rng(seed)
    chosen = rng.choice(_N_TEXTS, n, p=popularity)
    likelihood = mixtures @ searcher  # [docs, words]
    queries = [_write(rng, words, likelihood[doc], _QUERY_WORDS) for doc in chosen]
    index = {word: i for i, word in enumerate(words)}
    # Bayes: the prior and the likelihood of each word; a stop word is as likely for any document.
    evidence = np.hstack([np.log(likelihood), np.zeros((_N_TEXTS, _STOP_WORDS))])
    scores = np.stack(
        [evidence[:, [index[w] for w in query.split()]].sum(axis=1) for query in queries]
    )
    inputs = pd.DataFrame(
        {
            "query": queries,
            "doc_id": [f"doc_{i}" for i in chosen],
            "doc": [titles[i] for i in chosen],
        }
    )
    ranks = expected_ranks(scores + np.log(popularity), chosen)
    return inputs, pd.DataFrame({"rank": ranks})


def generate_feature_pairs(folder: Path, queries: Mapping[str, int] = QUERIES) -> None:
    """Write ``{split}.csv`` and ``{split}_truth.parquet``, unless the folder exists."""
    _generate(folder, queries, feature_pairs)


def generate_text_pairs(folder: Path, queries: Mapping[str, int] = TEXT_QUERIES) -> None:
    """Write ``{split}.csv`` and ``{split}_truth.parquet``, unless the folder exists."""
    _generate(folder, queries, text_pairs)


def _generate(folder: Path, queries: Mapping[str, int], draw: Any) -> None:
    if folder.exists():
        return
    with writing_folder(folder) as finished:
        for split, n in queries.items():
            inputs, truth = draw(n, _SEEDS[split])
            inputs.to_csv(finished / f"{split}.csv", index=False)
            truth.to_parquet(finished / f"{split}_truth.parquet", index=False)


def _words(rng: np.random.Generator) -> list[str]:
    """Make up distinct words of two or three syllables: topic words, then stop words."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < _N_TOPICS * _TOPIC_WORDS + _STOP_WORDS:
        words["".join(rng.choice(syllables, rng.integers(2, 4)))] = None
    return list(words)


def _dialect(rng: np.random.Generator) -> Array:
    """Draw the probability of each word given a topic, float64 [topics, topic words].

    The words of a topic follow Zipf's law, in an order of their own for each topic.
    """
    zipf = 1 / np.arange(1, _TOPIC_WORDS + 1)
    dialect = np.zeros((_N_TOPICS, _N_TOPICS, _TOPIC_WORDS))
    for topic in range(_N_TOPICS):
        dialect[topic, topic] = rng.permutation(zipf / zipf.sum())
    return dialect.reshape(_N_TOPICS, -1)


def _write(rng: np.random.Generator, words: list[str], weights: Array, length: int) -> str:
    """Write a text of ``length`` words, about 30 % of them stop words."""
    zipf = 1 / np.arange(1, _STOP_WORDS + 1)
    stops = _STOP_SHARE * zipf / zipf.sum()
    drawn = rng.choice(len(words), length, p=np.concatenate([(1 - _STOP_SHARE) * weights, stops]))
    return " ".join(words[i] for i in drawn)
