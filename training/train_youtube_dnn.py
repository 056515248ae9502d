"""Train YouTube's candidate generation network: ``python -m training.train_youtube_dnn``.

Shapes: B users or request rows, N items of the vocabulary, D embedding dim.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import tyro
from rich.console import Console
from torch import Tensor

from handlers.feature import FIRST_TOKEN_INDEX
from handlers.histories import pad_histories
from handlers.models.weights import network_bytes
from handlers.models.youtube_dnn import ARCH_VERSION, META_FILE, WEIGHTS_FILE, YouTubeDNN
from handlers.request_rows import HISTORY_KEY
from handlers.schema import FeatureSchema
from training import run
from training.artifacts import save_item_vectors, space_id
from training.bounds import Count, CountOrZero, Dropout, EmbeddingDim, LearningRate, Weight, Widths
from training.engine.fit import FitConfig, fit_steps, hide_tokens
from training.engine.worker import seed_everything
from training.golden import Golden
from training.metrics.curves import save_loss
from training.metrics.retrieval import Scores
from training.metrics.tables import metric_table
from training.tasks.next_item.data import NextItemConfig, NextItemData
from training.tasks.next_item.evaluation import HistoryEvaluation
from training.tasks.next_item.losses import softmax_loss
from training.tasks.next_item.rows import Row, encode_rows, golden_rows
from training.tasks.next_item.split import HeldOut
from training.tasks.next_item.windows import cut_windows, hide_items

# Number of users to embed, or to compute the validation loss of, at a time.
_CHUNK_USERS = 256


@dataclass(frozen=True)
class Config(NextItemConfig, FitConfig):
    """Train a network that embeds users by their features and by their history.

    Each user's last item is the test; for some users, the item before it selects the epoch.

    Attributes:
        embedding_dim: Width of the vectors of users and items.
        feature_dim: Width of the embedding of one user feature.
        hidden: Widths of the hidden layers.
        max_history: Number of items at the end of a history that count.
        n_weightings: Number of averages of the history, each with its own weights by recency.
        dropout: Share of inputs and hidden units dropped in training.
        full_softmax_items: With more items than this, the loss is over a sample of them.
        sampled_items: Size of that sample.
        batch_size: Histories a step, of up to max_history predictions each.
    """

    model: ClassVar[str] = "youtube_dnn"

    embedding_dim: EmbeddingDim = 64
    feature_dim: Count = 16
    hidden: Widths = (128,)
    max_history: Count = 50
    n_weightings: Count = 4
    dropout: Dropout = 0.3
    full_softmax_items: CountOrZero = 50_000
    sampled_items: Count = 8_192
    batch_size: Count = 32
    lr: LearningRate = 2e-2
    embedding_decay: Weight = 0.2


def evaluation(config: Config, _: Sequence[str] = ()) -> HistoryEvaluation:
    """Load the data and hold out what the model is judged on."""
    return HistoryEvaluation(config)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; return their folder."""
    test = evaluation(config)
    statistics = run.check_data(test, [], config)
    data = test.data
    vocabulary = data.split.vocabulary
    seed_everything(config.seed)
    network = YouTubeDNN(
        data.schema.cardinalities,
        len(vocabulary),
        config.embedding_dim,
        config.feature_dim,
        config.hidden,
        config.max_history,
        config.n_weightings,
        config.dropout,
    )
    losses = fit(network, data, config)

    # The table that is scored here and exported is the one that the network reads histories by.
    vectors = network.all_item_vectors().detach()

    def score_items(held_out: HeldOut) -> Scores:
        scores: Scores = (embed(network, data.user_matrix, held_out) @ vectors.T).numpy()
        return scores

    reports = test.reports(config.model, test.rank(score_items))
    Console().print(metric_table(reports, "The last item of each history"))

    weights, features = network_bytes(network), data.schema.to_json()
    rows = golden_rows(data.schema, data.user_frame, data.split)
    with run.writing_artifacts(
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=Golden(rows, embed_rows(network, data.schema, vocabulary, rows).tolist()),
        vocabularies=data.schema.vocabularies() | {HISTORY_KEY: vocabulary},
        features=features,
        space_id=space_id(weights, [features, vocabulary]),
        data_sha256=data.sha256,
        statistics=statistics,
    ) as folder:
        (folder / WEIGHTS_FILE).write_bytes(weights)
        save_item_vectors(folder, vocabulary, vectors.numpy())
        save_loss(folder, losses, "cross-entropy")
    return config.folder()


def fit(network: YouTubeDNN, data: NextItemData, config: Config) -> dict[str, list[float]]:
    """Train by a softmax over the items, at every step of every history.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.
    """
    network.inputs.fit(data.user_matrix)
    windows = cut_windows(data.split.train, config.max_history).to(config.device)
    all_users = data.user_matrix.to(config.device)
    loss = softmax_loss(network, windows.targets, config.full_softmax_items, config.sampled_items)

    def step(index: Tensor) -> Tensor:
        users = hide_tokens(all_users[windows.users[index]], network.inputs)
        histories, targets = hide_items(windows.histories[index]), windows.targets[index]
        steps = targets >= FIRST_TOKEN_INDEX
        return loss(network.at_steps(users, histories, steps), targets[steps] - FIRST_TOKEN_INDEX)

    held_out = data.split.valid
    expected = torch.from_numpy(held_out.targets).to(config.device) - FIRST_TOKEN_INDEX
    known = expected >= 0

    def validate() -> Tensor:
        users = torch.split(embed(network, all_users, held_out)[known], _CHUNK_USERS)
        targets = torch.split(expected[known], _CHUNK_USERS)
        losses = [loss(*part) * len(part[1]) for part in zip(users, targets, strict=True)]
        return torch.stack(losses).sum() / known.sum()

    base = config.base_network(YouTubeDNN, WEIGHTS_FILE, ARCH_VERSION)
    return fit_steps(network, len(windows.users), step, validate, config, base)


@torch.inference_mode()
def embed(network: YouTubeDNN, all_users: Tensor, held_out: HeldOut) -> Tensor:
    """Embed users, features float32 [U, C], after their histories, float32 [B, D]."""
    network.eval()
    vectors = []
    for part in held_out.chunks(_CHUNK_USERS):
        histories = pad_histories(part.histories, network.max_history)
        vectors.append(network(all_users[part.users], histories.to(all_users.device)))
    return torch.cat(vectors)


@torch.inference_mode()
def embed_rows(
    network: YouTubeDNN, schema: FeatureSchema, vocabulary: Sequence[str], rows: Sequence[Row]
) -> Tensor:
    """Embed request rows, float32 [B, D]."""
    matrix, histories = encode_rows(schema, vocabulary, rows)
    vectors: Tensor = network(
        torch.from_numpy(matrix), pad_histories(histories, network.max_history)
    )
    return vectors


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line and return the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
