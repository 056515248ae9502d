"""Train DSSM on features, or with ``--text`` on texts: ``python -m training.train_dssm``.

Shapes: B queries of a batch, N candidate documents, R pairs of a query and a document.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import tyro
from rich.console import Console
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from handlers.models.dssm import ARCH_VERSION, DSSM, META_FILE, WEIGHTS_FILE
from handlers.models.text import ragged
from handlers.models.weights import network_bytes
from training import run
from training.artifacts import save_item_vectors, space_id
from training.bounds import Count, Dropout, EmbeddingDim, LearningRate, Weight, Widths
from training.engine.fit import FitConfig, History, fit_steps
from training.engine.worker import seed_everything
from training.golden import Golden
from training.metrics.curves import save_curves
from training.metrics.ranking import ranking_report
from training.metrics.tables import metric_table
from training.tasks.search.calibration import calibrate, calibration_pairs, relevance
from training.tasks.search.data import (
    SearchConfig,
    SearchData,
    SearchPairs,
    golden_queries,
    load_search_data,
)
from training.tasks.search.evaluation import SearchEvaluation
from training.tasks.search.losses import candidate_docs, in_batch_loss, listwise_loss
from training.tasks.search.towers import build_network, embed, hide_categories


@dataclass(frozen=True)
class Config(SearchConfig, FitConfig):
    """Train DSSM to find the documents that are relevant to a query.

    Attributes:
        batch_size: Queries of a step, each with all of its documents.
        layers: Widths of the hidden layers of a tower over features.
        embedding_dim: Width of a vector.
        feature_dim: Width of the embedding of one feature.
        token_dropout: Share of a text's tokens hidden in training.
        in_batch_weight: Weight of the loss against the documents of the batch's other queries.
        max_docs: Number of random documents that a step compares its queries with, in addition to
            their own; all documents if there are no more than that.
    """

    model: ClassVar[str] = "dssm"

    epochs: Count = 15
    batch_size: Count = 256
    lr: LearningRate = 5e-3
    embedding_decay: Weight = 0.1
    patience: Count = 5
    layers: Widths = (128, 64)
    embedding_dim: EmbeddingDim = 64
    feature_dim: Count = 8
    token_dropout: Dropout = 0.4
    in_batch_weight: Weight = 0.3
    max_docs: Count = 2048


def evaluation(config: Config, _: Sequence[str] = ()) -> SearchEvaluation:
    """Load the data to evaluate on."""
    return SearchEvaluation(load_search_data(config))


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    seed_everything(config.seed)
    network = build_network(
        data,
        embedding_dim=config.embedding_dim,
        layers=config.layers,
        feature_dim=config.feature_dim,
        token_dropout=config.token_dropout,
    )
    history = fit(network, data, config)
    docs = embed(network.doc, data.docs)
    calibrate(network, data, docs)

    queries = embed(network.query, data.test.queries)
    owner, targets, relevant = calibration_pairs(data, data.test)
    labels = relevant.numpy()
    probabilities = relevance(network, queries, docs, owner, targets)
    if data.labeled:
        reports = test.reports(config.model, probabilities)
    else:
        reports = test.reports(config.model, test.score(queries.numpy(), docs.numpy()))
        reports[config.model] |= ranking_report(labels, probabilities)
    Console().print(metric_table(reports, "DSSM on the test split"))

    rows, inputs = golden_queries(data)
    weights, features = network_bytes(network), data.query_columns.to_json()
    doc_features = data.doc_columns.to_json()
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=Golden(rows, embed(network.query, inputs).tolist()),
        vocabularies=data.vocabularies,
        text=config.text,
        embed_dim=config.embedding_dim,
        query_cols=list(data.query_columns.schema.names),
        doc_cols=list(data.doc_columns.schema.names),
        features=features,
        doc_features=doc_features,
        label_column=config.label if data.labeled else None,
        # The probability of relevance is sigmoid(slope * cosine + intercept).
        calibration={
            "slope": network.log_slope.exp().item(),
            "intercept": network.intercept.item(),
        },
        space_id=space_id(weights, [features, doc_features, data.vocabularies]),
        data_sha256=data.sha256,
        statistics=statistics,
    ) as folder:
        (folder / WEIGHTS_FILE).write_bytes(weights)
        save_item_vectors(folder, list(data.doc_rows), docs.numpy()[list(data.doc_rows.values())])
        save_curves(folder, history, labels, probabilities)
    return config.folder()


def fit(network: DSSM, data: SearchData, config: Config) -> History:
    """Train a network in place; return the loss after each epoch, by ``train`` and ``valid``.

    The loss of a batch is a weighted sum. A listwise loss compares each relevant document with the
    irrelevant ones of its query's list or, without labels, with all others. A sampled softmax
    compares it with the documents of the batch's other queries. Labeled pairs add the logloss,
    which also learns from lists that are too short to compare.
    """
    train, valid = data.train.to(config.device), data.valid.to(config.device)
    all_docs = data.docs.to(config.device)
    popularity = torch.bincount(train.docs, minlength=len(all_docs)) + 1.0
    popularity /= popularity.sum()

    def loss(split: SearchPairs, index: Tensor, n_docs: int) -> Tensor:
        pairs, row = ragged(split.counts, index)  # pair of the split, query of the batch: [R]
        targets, labels = split.docs[pairs], split.labels[pairs]
        docs, column = candidate_docs(targets, n_docs, config.max_docs)  # [N], [R]
        queries = network.query(hide_categories(network.query, split.queries[index]))
        documents = network.doc(hide_categories(network.doc, all_docs[docs]))
        logits = network.logits(queries @ documents.T)  # [B, N]
        # logQ correction (Yi et al., 2019): the probability that a pair of the batch has it.
        sampled = -torch.expm1(len(pairs) * torch.log1p(-popularity[docs]))  # [N]
        total = listwise_loss(logits, row, column, labels, data.labeled)
        in_batch = in_batch_loss(logits - sampled.log(), row, column, labels)
        total += config.in_batch_weight * in_batch
        if data.labeled:
            total += binary_cross_entropy_with_logits(logits[row, column], labels)
        return total

    def step(index: Tensor) -> Tensor:
        return loss(train, index, data.n_known)

    def validate() -> Tensor:
        network.eval()
        n = len(valid.counts)
        batches = torch.split(torch.arange(n, device=config.device), config.batch_size)
        losses = [loss(valid, index, len(all_docs)) * len(index) for index in batches]
        return torch.stack(losses).sum() / n

    base = config.base_network(type(network), WEIGHTS_FILE, ARCH_VERSION)
    return fit_steps(network, len(train.counts), step, validate, config, base)


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
