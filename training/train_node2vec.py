"""Train node2vec (Grover and Leskovec, 2016, arXiv:1607.00653) to recall nodes of a graph.

``python -m training.train_node2vec --edges edges.csv`` trains the archive graph_recall. The
sentences of its skip-gram are random walks over the graph.

Shapes: N nodes, D embedding dim.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import tyro
from pydantic import Field
from rich.console import Console

from handlers.models.graph_recall import ARCH_VERSION, META_FILE, Neighbours, Vectors
from training import run
from training.bounds import Count, LearningRate, Share
from training.engine.skip_gram import SkipGramConfig, train_skip_gram
from training.metrics.tables import metric_table
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
from training.tasks.links.evaluation import (
    LinkPredictionEvaluation,
    block_nmi,
    hadamard_auc,
    score_by_cosine,
)
from training.tasks.links.rows import golden, node_schema
from training.tasks.links.walks import Walker, WalkSentences
from training.tasks.links.world import expected_edges, generate_communities, read_truth

DEFAULT_DATA = Path("data/graph")

WalkLength = Annotated[int, Field(ge=2)]
Bias = Annotated[float, Field(ge=0.01, le=100)]  # outside, a step would take too many draws

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(run.RunConfig, SkipGramConfig):
    """Train node vectors from the edges of a graph, and serve the nearest nodes of each node.

    Attributes:
        data_path: Edge list; a folder with one named edges; a folder or pattern of files to read
            one after the other; or the s3:// URL of one of these. .csv, .parquet and .jsonl have
            the columns source, target and optionally weight, .edgelist and .txt an edge a line. By
            default a synthetic graph is generated into data/graph.
        directed: Walk edges only from source to target.
        walk_length: Nodes of a walk.
        num_walks: Walks from each node in each epoch.
        p: Below 1, walks return to the previous node more often.
        q: Below 1, walks leave the neighborhood of the previous node more often.
        epochs: Training passes, each over new walks.
        lr: Learning rate, which decays to nearly 0.
        test_share: Share of the edges that is held out for the test.
    """

    model: ClassVar[str] = "graph_recall"
    library: ClassVar[str] = "gensim"

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data", "--edges"))] = None
    directed: bool = False
    walk_length: WalkLength = 40
    num_walks: Count = 10
    p: Bias = 1.0
    q: Bias = 1.0
    epochs: Count = 3
    lr: LearningRate = 0.025
    test_share: Share = 0.1


def evaluation(config: Config, _: Sequence[str] = ()) -> LinkPredictionEvaluation:
    """Load the graph and hold out the edges that the model is judged on."""
    if config.uses_default_data:
        if not DEFAULT_DATA.exists():
            logger.info("no --edges: generating a synthetic graph in %s", DEFAULT_DATA)
        generate_communities(DEFAULT_DATA)
    data = config.data(DEFAULT_DATA, EDGES_STEM, EDGES_SUFFIXES)
    table = read_edges(data)
    edges = to_edges(table, directed=config.directed)
    train, test = hold_out(edges, config.test_share, config.seed)
    oracle = None
    if config.uses_default_data:
        oracle = expected_edges(read_truth(DEFAULT_DATA, edges.ids)).__getitem__
    return LinkPredictionEvaluation(
        train, test, config.seed, oracle, table[[SOURCE, TARGET]], data.sha256(table)
    )


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    logging.getLogger("faiss").setLevel(logging.WARNING)
    test = evaluation(config)
    statistics = run.check_data(test, [], config)
    known, held_out = test.train, test.test
    vectors = embed(known, config)

    reports = test.reports(config.model, test.measure(score_by_cosine(vectors)))
    reports[config.model]["hadamard_auc"] = hadamard_auc(vectors, known, held_out, config.seed)
    if config.uses_default_data:
        blocks = read_truth(DEFAULT_DATA, known.ids)["block"].to_numpy()
        reports[config.model]["nmi"] = block_nmi(vectors, blocks, config.seed)
    Console().print(metric_table(reports, f"node2vec on {len(held_out)} held-out edges"))

    schema, neighbours = node_schema(known.ids), Neighbours.build(vectors)
    with run.writing_artifacts(
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
    return config.folder()


def embed(edges: Edges, config: Config) -> Vectors:
    """Embed the nodes of a graph.

    Args:
        edges: Edges that touch every node.
        config: How to walk and how to train.

    Returns:
        Vectors of unit length, float32 [N, D].
    """
    walker = Walker(edges.adjacency(), config.walk_length, config.p, config.q)
    walks = WalkSentences(walker, config.num_walks, config.seed)
    vectors, _ = train_skip_gram(walks, walks.visits(), config, lr=config.lr)
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line and return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
