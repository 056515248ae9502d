"""Train the two-tower model: ``python -m training.train_two_tower``.

One run yields three archives: two_tower and user_tower embed users, item_tower embeds items.

Shapes: B positives of a batch, N candidates, C matrix columns, D embedding dim.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import tyro
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from handlers.models.two_tower import ARCH_VERSION, META_FILE, WEIGHTS_FILE, TwoTower
from handlers.models.weights import network_bytes
from handlers.schema import FeatureSchema
from training import run
from training.artifacts import save_item_vectors, space_id
from training.bounds import Count, CountOrZero, Dropout, EmbeddingDim, LearningRate, Weight, Widths
from training.engine.devices import tensors
from training.engine.fit import FitConfig, History, fit_steps, hide_some, hide_tokens, predict
from training.engine.worker import seed_everything
from training.golden import Golden, golden_matrix
from training.metrics.curves import save_loss
from training.metrics.tables import metric_table
from training.tasks.retrieval.data import RetrievalConfig, RetrievalData, load_retrieval_data
from training.tasks.retrieval.evaluation import RetrievalEvaluation

# Validation positives per chunk: their logits for the whole catalog are in memory together.
VALID_ROWS = 256


@dataclass(frozen=True)
class Config(RetrievalConfig, FitConfig):
    """Train two towers to find the items that a user chooses.

    Attributes:
        embedding_dim: Width of the user and item vectors.
        user_layers: Widths of the user tower's hidden layers.
        item_layers: Widths of the item tower's hidden layers.
        feature_dim: Width of the embedding of one input.
        extra_negatives: Items drawn uniformly from the catalog for each batch, in addition to its
            own.
        log_q: Subtract the log of how often an item is a candidate from its logit. Without the
            correction, popular items rank too low because they are candidates often.
        id_dropout: Share of item ids hidden in training, so that the tower also works for new
            items.
    """

    model: ClassVar[str] = "two_tower"

    embedding_dim: EmbeddingDim = 64
    user_layers: Widths = (128, 64)
    item_layers: Widths = (128, 64)
    feature_dim: Count = 16
    extra_negatives: CountOrZero = 256
    log_q: bool = True
    id_dropout: Dropout = 0.1
    epochs: Count = 12
    batch_size: Count = 256
    lr: LearningRate = 1e-2
    embedding_decay: Weight = 0.1
    patience: Count = 5


def evaluation(config: Config, _: Sequence[str] = ()) -> RetrievalEvaluation:
    """Load the data to evaluate on."""
    return RetrievalEvaluation(load_retrieval_data(config))


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [config.label], config)
    data = test.data
    seed_everything(config.seed)
    network = TwoTower(
        user_dim=data.user_schema.n_columns,
        item_dim=data.item_schema.n_columns,
        user_layers=config.user_layers,
        item_layers=config.item_layers,
        embed_dim=config.embedding_dim,
        feature_dim=config.feature_dim,
        user_cardinalities=data.user_schema.cardinalities,
        item_cardinalities=data.item_schema.cardinalities,
    )
    history = fit(network, data, config)

    vectors = predict(network.item, torch.from_numpy(data.items))
    users = predict(network.user, torch.from_numpy(data.test.users))
    ranks = test.rank(lambda rows: (users[rows] @ vectors.T).numpy())
    reports = test.reports(config.model, ranks)
    Console().print(metric_table(reports, "Two towers on the test split"))
    weights = network_bytes(network)
    user_features, item_features = data.user_schema.to_json(), data.item_schema.to_json()
    vocabularies = data.user_schema.vocabularies() | data.item_schema.vocabularies()
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden={
            "user_golden.json": _golden(data.golden_users, data.user_schema, network.user),
            "item_golden.json": _golden(data.golden_items, data.item_schema, network.item),
        },
        vocabularies=vocabularies,
        user_cols=list(data.user_schema.names),
        item_cols=list(data.item_schema.names),
        embed_dim=config.embedding_dim,
        user_features=user_features,
        item_features=item_features,
        space_id=space_id(weights, [user_features, item_features, vocabularies]),
        label_column=config.label,
        data_sha256=data.sha256,
        statistics=statistics,
    ) as folder:
        (folder / WEIGHTS_FILE).write_bytes(weights)
        save_item_vectors(folder, data.item_ids, vectors.numpy())
        save_loss(folder, history, "cross-entropy")
    return config.folder()


def fit(network: TwoTower, data: RetrievalData, config: Config) -> History:
    """Train a network in place by a sampled softmax.

    The candidates of a positive are the items of its batch, items drawn uniformly from the catalog
    and a hard negative of its user.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``; the latter over the whole catalog.
    """
    n_known, device = data.n_known, config.device
    network.user.inputs.fit(torch.from_numpy(data.train.users))
    network.item.inputs.fit(torch.from_numpy(data.items[:n_known]))
    catalog, users, chosen = tensors(device, data.items, data.train.users, data.train.items)
    passed = data.hard_negatives
    starts, counts, negatives = tensors(device, passed.starts, passed.counts, passed.items)
    negatives = pad(negatives, (0, 1))  # a place for users without hard negatives to point to
    features = data.item_schema.column_features
    id_columns = [i for i, f in enumerate(features) if f.name == config.item_id]
    frequency = torch.from_numpy(data.counts / data.counts.sum()).float().to(device)

    def embed_items(items: Tensor) -> Tensor:
        batch = hide_tokens(catalog[items], network.item.inputs)
        vectors: Tensor = network.item(hide_some(batch, id_columns, config.id_dropout))
        return vectors

    def step(index: Tensor) -> Tensor:
        user = network.user(hide_tokens(users[index], network.user.inputs))  # [B, D]
        own, diagonal = chosen[index], torch.arange(len(index), device=device)  # [B]
        extra = torch.randint(n_known, (config.extra_negatives,), device=device)
        candidates = torch.cat([own, extra])  # [N]
        logits = network.logits(user, embed_items(candidates))  # [B, N]
        if config.log_q:
            # Expected number of times that an item is among the candidates.
            expected = len(index) * frequency[candidates] + config.extra_negatives / n_known
            logits = logits - expected.log()
        duplicate = candidates == own[:, None]
        duplicate[diagonal, diagonal] = False
        logits = logits.masked_fill(duplicate, -torch.inf)
        # A hard negative is the candidate of one user only: it needs no logQ correction.
        drawn = (torch.rand(len(index), device=device) * counts[index]).long()
        hard = negatives[starts[index] + drawn]
        hard_logits = (user * embed_items(hard)).sum(1) / network.temperature  # [B]
        hard_logits = hard_logits.masked_fill((counts[index] == 0) | (hard == own), -torch.inf)
        return cross_entropy(torch.cat([logits, hard_logits[:, None]], dim=1), diagonal)

    valid_users, valid_chosen = tensors(device, data.valid.users, data.valid.items)

    def validate() -> Tensor:
        user, items = predict(network.user, valid_users), predict(network.item, catalog)
        chunks = zip(*(torch.split(t, VALID_ROWS) for t in (user, valid_chosen)), strict=True)
        losses = [cross_entropy(network.logits(u, items), c, reduction="sum") for u, c in chunks]
        return torch.stack(losses).sum() / len(user)

    base = config.base_network(TwoTower, WEIGHTS_FILE, ARCH_VERSION)
    return fit_steps(network, len(users), step, validate, config, base)


def _golden(
    rows: Sequence[Mapping[str, Any]], schema: FeatureSchema, tower: torch.nn.Module
) -> Golden:
    """Pair golden rows with the vectors that a tower makes of them."""
    matrix = torch.from_numpy(golden_matrix(schema, rows))
    return Golden(rows, predict(tower, matrix).tolist())


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
