"""Train node2vec (Grover and Leskovec, 2016, arXiv:1607.00653) to recall nodes of a graph.

``python -m training.train_node2vec --edges edges.csv`` makes the archive graph_recall: random walks
are its sentences, and skip-gram (Mikolov et al., 2013, arXiv:1310.4546) embeds their nodes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import tyro
from gensim.models import Word2Vec
from pydantic import Field
from rich.console import Console
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from tqdm import tqdm

from handlers.models.graph_recall import (
    ARCH_VERSION,
    DEFAULT_TOP_K,
    MAX_TOP_K,
    META_FILE,
    Neighbours,
    Vectors,
)
from handlers.schema import Feature, FeatureSchema
from training import run
from training.bounds import Count, EmbeddingDim, LearningRate, Share
from training.data import validation
from training.data.files import read_parquet
from training.golden import Golden
from training.metrics.tables import metric_table
from training.tasks.links import evaluation as link_prediction
from training.tasks.links.data import (
    EDGES_STEM,
    EDGES_SUFFIXES,
    SOURCE,
    TARGET,
    Edges,
    hold_out,
    read_edges,
    to_edges,
)
from training.tasks.links.evaluation import LinksEvaluation
from training.tasks.links.walks import NO_NODE, Walker
from training.tasks.links.world import TRUTH_FILE, expected_edges, generate_communities

MODEL = "graph_recall"
DEFAULT_DATA = Path("data/graph")
GOLDEN_ROWS = 32
UNKNOWN_ID = "a node that no edge has"

WalkLength = Annotated[int, Field(ge=2)]
Bias = Annotated[float, Field(ge=0.01, le=100)]  # beyond, walks would take forever

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(run.RunConfig):
    """Train node vectors from the edges of a graph, and serve each node's nearest ones.

    Attributes:
        data_path: Edge list, a folder with one named edges, a folder or pattern of files that
            follow each other, or the s3:// URL of one of these: .csv, .parquet or .jsonl with the
            columns source, target and optionally weight, or .edgelist or .txt, a line an edge;
            when left out, a synthetic graph is generated into data/graph.
        directed: Walk edges only from source to target.
        embedding_dim: Width of a vector.
        walk_length: Nodes of a walk.
        num_walks: Walks from each node, for each epoch.
        p: Below 1, walks return to where they came from more often.
        q: Below 1, walks leave the neighbourhood of where they came from more often.
        window: Nodes of a walk are neighbours when at most so many steps apart.
        negative: Nodes drawn as negatives for each neighbour.
        epochs: Passes, each over walks of its own.
        lr: Learning rate, which falls to nearly 0.
        test_share: Part of the edges that is held out for the test.
    """

    distributable: ClassVar[bool] = False

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data", "--edges"))] = None
    directed: bool = False
    embedding_dim: EmbeddingDim = 64
    walk_length: WalkLength = 40
    num_walks: Count = 10
    p: Bias = 1.0
    q: Bias = 1.0
    window: Count = 10
    negative: Count = 5
    epochs: Count = 3
    lr: LearningRate = 0.025
    test_share: Share = 0.1


def evaluation(config: Config, _: Sequence[str] = ()) -> LinksEvaluation:
    """What the model is judged on."""
    if config.uses_default_data:
        if not DEFAULT_DATA.exists():
            logger.info("no --edges: generating a synthetic graph in %s", DEFAULT_DATA)
        generate_communities(DEFAULT_DATA)
    data = config.data(DEFAULT_DATA, EDGES_STEM, EDGES_SUFFIXES)
    table = read_edges(data)
    edges = to_edges(table, directed=config.directed)
    known, held_out = hold_out(edges, config.test_share, config.seed)
    oracle = expected_edges(_truth(edges.ids)).__getitem__ if config.uses_default_data else None
    return LinksEvaluation(
        known, held_out, config.seed, oracle, table[[SOURCE, TARGET]], data.sha256(table)
    )


def train(config: Config) -> Path:
    """Train, report and write the artifacts; returns their folder."""
    for library in ("gensim", "faiss"):
        logging.getLogger(library).setLevel(logging.WARNING)
    test = evaluation(config)
    statistics = validation.check(MODEL, test.train_frame, [], config)
    known, held_out = test.train, test.test
    vectors = embed(known, config)

    reports = test.reports(MODEL, test.measure(link_prediction.cosine_scorer(vectors)))
    reports[MODEL]["hadamard_auc"] = link_prediction.hadamard_auc(
        vectors, known, held_out, config.seed
    )
    if config.uses_default_data:
        blocks = _truth(known.ids)["block"].to_numpy()
        reports[MODEL]["nmi"] = _block_nmi(vectors, blocks, config.seed)
    Console().print(metric_table(reports, f"node2vec on {len(held_out)} held out edges"))

    schema = FeatureSchema(
        [
            Feature("user_id", kind="category", vocabulary=tuple(known.ids)),
            Feature("top_k", default=DEFAULT_TOP_K, train_range=(1, MAX_TOP_K)),
        ]
    )
    neighbours = Neighbours.build(vectors)
    with run.writing_artifacts(
        MODEL,
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=golden(known.ids, neighbours),
        vocabularies=schema.vocabularies(),
        libraries=["gensim", "faiss-cpu"],
        features=schema.to_json(),
        n_nodes=known.n_nodes,
        n_edges=len(known) + len(held_out),
        data_sha256=test.data_sha256,
        statistics=statistics,
    ) as folder:
        neighbours.save(folder)
    return config.folder(MODEL)


def embed(edges: Edges, config: Config) -> Vectors:
    """Embed the nodes of a graph.

    Args:
        edges: At least one for each node.
        config: How to walk and how to train.

    Returns:
        Vectors of unit length, float32 [N, D].
    """
    walks = _Walks(edges, config)
    model = Word2Vec(
        vector_size=config.embedding_dim,
        window=config.window,
        negative=config.negative,
        alpha=config.lr,
        sg=1,
        sample=0,
        min_count=1,
        seed=config.seed,
        workers=1,  # more would share the vectors without locks: never the same twice
    )
    model.build_vocab_from_freq(walks.visits())
    with walks.bar:
        model.train(walks, total_examples=walks.per_epoch, epochs=config.epochs)
    vectors = model.wv.vectors[[model.wv.key_to_index[node] for node in range(edges.n_nodes)]]
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


class _Walks:
    """The sentences of skip-gram, drawn anew for each epoch instead of being held in memory."""

    def __init__(self, edges: Edges, config: Config) -> None:
        self._walker = Walker(edges.adjacency(), config.walk_length, config.p, config.q)
        self._num_walks = config.num_walks
        self._seeds = iter(np.random.SeedSequence(config.seed).spawn(1 + config.epochs))
        self.per_epoch = config.num_walks * edges.n_nodes
        self.bar = tqdm(
            total=config.epochs * self.per_epoch, unit="walk", unit_scale=True, disable=None
        )

    def visits(self) -> dict[int, int]:
        """How often walks come to each node."""
        counts = np.zeros(self._walker.n_nodes, dtype=np.int64)
        for walks in self._walker.walks(self._num_walks, next(self._seeds)):
            counts += np.bincount(walks[walks != NO_NODE], minlength=len(counts))
        return dict(enumerate(counts.tolist()))

    def __iter__(self) -> Iterator[list[int]]:
        for walks in self._walker.walks(self._num_walks, next(self._seeds)):
            lengths = (walks != NO_NODE).sum(axis=1).tolist()
            for walk, length in zip(walks.tolist(), lengths, strict=True):
                yield walk[:length]
            self.bar.update(len(walks))


def golden(ids: Sequence[str], neighbours: Neighbours) -> Golden:
    """Rows as callers send them, with the nearest nodes of those that are known."""
    nodes = np.linspace(0, len(ids) - 1, GOLDEN_ROWS - 2).astype(np.int64)
    top_k = [DEFAULT_TOP_K] * len(nodes)
    rows: list[dict[str, Any]] = [{"user_id": ids[node], "top_k": 20} for node in nodes]
    for i, (sent, meant) in enumerate(((1, 1), (1000, MAX_TOP_K), (-3, 1), (None, 20)), start=2):
        rows[i]["top_k"], top_k[i] = sent, meant
    del rows[6]["top_k"]
    predictions: list[Any] = [
        {"item_ids": [ids[i] for i in nearest], "scores": scores.tolist()}
        for nearest, scores in neighbours.nearest(nodes, top_k)
    ]
    rows += [{"user_id": UNKNOWN_ID, "top_k": 5}, {}]
    predictions += [{"item_ids": [], "scores": []}] * 2
    return Golden(rows, predictions)


def _truth(ids: Sequence[str]) -> pd.DataFrame:
    """Of the default data's nodes."""
    return read_parquet(DEFAULT_DATA / TRUTH_FILE).set_index("node").loc[list(ids)]


def _block_nmi(vectors: Vectors, blocks: Any, seed: int) -> float:
    """How much k-means over the vectors tells of the true blocks, from 0 to 1."""
    n_blocks = len(np.unique(blocks))
    clusters = KMeans(n_blocks, n_init=4, random_state=seed).fit_predict(vectors)
    return float(normalized_mutual_info_score(blocks, clusters))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
