"""Train DSSM on features, or with ``--text`` on texts: ``python -m training.train_dssm``."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from handlers.models.dssm import (
    ARCH_VERSION,
    DSSM,
    META_FILE,
    WEIGHTS_FILE,
    FeatureDSSM,
    TextDSSM,
)
from handlers.models.layers import Tower
from handlers.models.text import TokenBags, ragged
from handlers.models.weights import network_bytes
from training import run
from training.artifacts import save_item_vectors, space_id
from training.bounds import Count, Dropout, EmbeddingDim, LearningRate, Weight, Widths
from training.data import validation
from training.engine.fit import FitConfig, fit_steps, hide_some
from training.engine.worker import seed_everything
from training.golden import Golden
from training.metrics.curves import save_curves
from training.metrics.ranking import Array, ranking_report
from training.metrics.tables import metric_table
from training.tasks.search import data as searches
from training.tasks.search.evaluation import SearchEvaluation, calibration_pairs

AT_ONCE = 8192  # vectors that are computed, or compared, in one call
NEVER = -1e4  # the logit of what is not compared


@dataclass(frozen=True)
class Config(searches.SearchConfig, FitConfig):
    """Train DSSM to find the documents that are meant by a query.

    Attributes:
        batch_size: Queries a step, each with all of its documents.
        layers: Widths of the hidden layers of a tower of features.
        embedding_dim: Width of a vector.
        feature_dim: Width of the embedding of one feature.
        token_dropout: Share of a text's tokens hidden in training.
        in_batch_weight: Of the loss against the other documents of a batch.
        max_docs: Documents that a step compares its queries with at least: its own and random
            ones, or all where there are no more.
    """

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
    """What the model is judged on."""
    return SearchEvaluation(searches.load(config))


def train(config: Config) -> Path:
    """Train, report and write the artifacts; returns their folder."""
    test = evaluation(config)
    statistics = validation.check("dssm", test.train_frame, [config.label], config)
    data = test.data
    seed_everything(config.seed)
    network = build(data, config)
    history = fit(network, data, config)
    docs = embed(network.doc, data.docs)
    calibrate(network, data, docs)

    queries = embed(network.query, data.test.queries)
    pairs = calibration_pairs(data, data.test)
    labels, probabilities = pairs[2].numpy(), probability(network, queries, docs, *pairs[:2])
    if data.labelled:
        reports = test.reports("dssm", probabilities)
    else:
        reports = test.reports("dssm", test.score(queries.numpy(), docs.numpy()))
        reports["dssm"] |= ranking_report(labels, probabilities)
    Console().print(metric_table(reports, "DSSM on the test split"))

    rows, inputs = searches.golden(data)
    weights, features = network_bytes(network), data.query_columns.to_json()
    doc_features = data.doc_columns.to_json()
    with run.writing_artifacts(
        "dssm",
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
        label_column=config.label if data.labelled else None,
        # Of sigmoid(slope * cosine + intercept), the probability that a document was meant.
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
    return config.folder("dssm")


def build(data: searches.SearchData, config: Config) -> FeatureDSSM | TextDSSM:
    """A network that has the statistics of the training split."""
    queries, docs = data.train.queries, data.docs[torch.arange(data.n_known)]
    if isinstance(queries, TokenBags) and isinstance(docs, TokenBags):
        of_texts = TextDSSM(config.embedding_dim, config.token_dropout)
        of_texts.query.fit(queries)
        of_texts.doc.fit(docs)
        return of_texts
    assert isinstance(queries, Tensor)
    assert isinstance(docs, Tensor)
    of_features = FeatureDSSM(
        data.query_columns.schema.cardinalities,
        data.doc_columns.schema.cardinalities,
        config.layers,
        config.embedding_dim,
        config.feature_dim,
    )
    of_features.query.inputs.fit(queries)
    of_features.doc.inputs.fit(docs)
    return of_features


def fit(network: DSSM, data: searches.SearchData, config: Config) -> dict[str, list[float]]:
    """Train a network in place; returns the loss after each epoch, by ``train`` and ``valid``.

    The loss of a query is listwise: against each document that was meant stand those of its list
    that were not, or without labels all others. To it come, with less weight, the documents of the
    batch's other queries, as a sampled softmax; and of labelled pairs the logloss, for lists too
    short to compare.
    """
    popularity = torch.bincount(data.train.docs, minlength=len(data.docs)) + 1.0
    popularity /= popularity.sum()

    def loss(split: searches.Searches, index: Tensor, n_docs: int) -> Tensor:
        pairs, row = ragged(split.counts, index)  # [R]: of the split, and which of the batch
        found, labels = split.docs[pairs], split.labels[pairs]
        docs, column = _compared(found, n_docs, config.max_docs)
        queries = _hidden(network.query, split.queries[index])
        cosines = network.query(queries) @ network.doc(_hidden(network.doc, data.docs[docs])).T
        logits = network.logits(cosines)  # [B, N]

        hit = labels == 1
        meant = torch.zeros(logits.shape, dtype=torch.bool)
        meant[row[hit], column[hit]] = True
        listed = torch.zeros_like(meant) if data.labelled else torch.ones_like(meant)
        listed[row, column] = True
        in_batch = torch.zeros(len(docs), dtype=torch.bool)
        in_batch[column] = True
        # A document is sampled when any of the batch's pairs has it (Yi et al., 2019).
        sampled = -torch.expm1(len(pairs) * torch.log1p(-popularity[docs]))
        total = _contrast(logits, row[hit], column[hit], listed & ~meant)
        total += config.in_batch_weight * _contrast(
            logits - sampled.log(), row[hit], column[hit], in_batch & ~meant
        )
        if data.labelled:
            total += binary_cross_entropy_with_logits(logits[row, column], labels)
        return total

    def step(index: Tensor) -> Tensor:
        return loss(data.train, index, data.n_known)

    def validate() -> Tensor:
        network.eval()
        batches = torch.split(torch.arange(len(data.valid.counts)), config.batch_size)
        losses = [loss(data.valid, index, len(data.docs)) * len(index) for index in batches]
        return torch.stack(losses).sum() / len(data.valid.counts)

    return fit_steps(network, len(data.train.counts), step, validate, config)


def _compared(found: Tensor, n_docs: int, max_docs: Count) -> tuple[Tensor, Tensor]:
    """The documents to compare a batch with, int64 [N], and where in them its own are, [R]."""
    if n_docs <= max_docs:
        return torch.arange(n_docs), found
    others = torch.randint(n_docs, (max_docs,))
    docs, at = torch.unique(torch.cat([found, others]), return_inverse=True)
    return docs, at[: len(found)]


def _hidden(tower: nn.Module, batch: searches.Inputs) -> searches.Inputs:
    """The batch, in training with some categories hidden; texts lose tokens inside the tower."""
    if isinstance(batch, Tensor) and isinstance(tower, Tower) and tower.training:
        return hide_some(batch, tower.inputs.categories)
    return batch


def _contrast(logits: Tensor, row: Tensor, column: Tensor, others: Tensor) -> Tensor:
    """Mean log-likelihood, negated, that a document is preferred to others of its row.

    Args:
        logits: float32 [B, N].
        row: Of each document that was meant, int64 [R].
        column: The same.
        others: What it is compared with, bool [B, N]; without any, it costs nothing.

    Returns:
        float32 [].
    """
    rest = logits.masked_fill(~others, NEVER).logsumexp(dim=1)  # [B]
    return softplus(rest[row] - logits[row, column]).sum() / max(1, len(row))


def embed(tower: nn.Module, inputs: searches.Inputs) -> Tensor:
    """Vectors of queries or documents, float32 [B, D]."""
    tower.eval()
    with torch.no_grad():
        return torch.cat(
            [tower(inputs[i]) for i in torch.split(torch.arange(len(inputs)), AT_ONCE)]
        )


def calibrate(network: DSSM, data: searches.SearchData, docs: Tensor) -> None:
    """Fit slope and intercept alone to the validation split (Platt, 1999)."""
    row, column, labels = calibration_pairs(data, data.valid)
    cosines = _cosines(embed(network.query, data.valid.queries), docs, row, column)
    optimizer = torch.optim.LBFGS(
        [network.log_slope, network.intercept], max_iter=100, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(network.logits(cosines), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def probability(network: DSSM, queries: Tensor, docs: Tensor, row: Tensor, column: Tensor) -> Array:
    """How likely each document was meant, given vectors and the places of pairs, float32 [R]."""
    with torch.no_grad():
        return network.logits(_cosines(queries, docs, row, column)).sigmoid().numpy()


def _cosines(queries: Tensor, docs: Tensor, row: Tensor, column: Tensor) -> Tensor:
    parts = zip(torch.split(row, AT_ONCE), torch.split(column, AT_ONCE), strict=True)
    return torch.cat([(queries[q] * docs[d]).sum(dim=1) for q, d in parts])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
