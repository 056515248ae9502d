"""Train YouTube's candidate generation network: ``python -m training.train_youtube_dnn``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import torch
import tyro
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from handlers.histories import pad_histories
from handlers.models.weights import network_bytes
from handlers.models.youtube_dnn import ARCH_VERSION, META_FILE, WEIGHTS_FILE, YouTubeDNN
from handlers.row_keys import HISTORY_KEY, USER_FEATURES_KEY
from handlers.schema import FIRST_TOKEN_INDEX, MISSING_INDEX, OOV_INDEX, FeatureSchema
from training import run
from training.artifacts import save_item_vectors, space_id
from training.bounds import (
    Count,
    CountOrZero,
    Dropout,
    EmbeddingDim,
    LearningRate,
    Share,
    Weight,
    Widths,
)
from training.data import validation
from training.data.features import fit_schema, to_matrix
from training.data.tables import DataError, read_table
from training.engine.fit import OOV_SHARE, FitConfig, fit_steps, hide_some
from training.engine.worker import seed_everything
from training.golden import UNKNOWN_TOKEN, Golden, golden_matrix, request_rows
from training.golden import golden_rows as tabular_rows
from training.metrics.curves import save_loss
from training.metrics.retrieval import Indices, Scores
from training.metrics.tables import metric_table
from training.run import split_names
from training.tasks.next_item import data as sequences
from training.tasks.next_item.data import Holdout, Sequences
from training.tasks.next_item.evaluation import SequencesEvaluation
from training.tasks.next_item.world import SEQUENCES_FILE, generate_sequences

DEFAULT_FOLDER = Path("data/sequences")
# Users embedded at once.
EMBED_ROWS = 256

Row = dict[str, Any]
Loss = Callable[[Tensor, Tensor], Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config(run.RunConfig, FitConfig):
    """Train a network that embeds users by their features and by what they took so far.

    Each user's last item is the test; of some users, the one before selects the epoch.

    Attributes:
        data_path: A file with a row for each item that a user took; a folder with a file named
            interactions, or a folder or pattern of files that follow each other; or the s3:// URL
            of one of these; when left out, a synthetic world with a known ceiling is generated
            into data/sequences.
        user_col: Column of the user.
        item_col: Column of the item.
        time_column: Column to sort the rows by; their order in the file by default.
        user_features: Input columns that describe the user, separated by commas.
        categorical: Those of them that are ids or strings, separated by commas.
        exclude_history: Rank without the items of the history, where nobody takes one twice.
        min_count: Items that training sees less often are out of vocabulary.
        valid_share: Share of the users that select the epoch.
        embedding_dim: Width of the vectors of users and items.
        feature_dim: Width of the embedding of one user feature.
        hidden: Widths of the hidden layers.
        max_history: So many items at the end of a history count.
        n_weightings: By how long ago an item came, the history is averaged in so many ways.
        dropout: Share of inputs and hidden units dropped in training.
        full_softmax_items: With more items than this, the loss is over a sample of them.
        sampled_items: How many that sample holds.
        batch_size: Histories a step, of up to max_history predictions each.
    """

    column_flags: ClassVar[Sequence[str]] = ("user_features", "categorical")

    data_path: Annotated[str | None, tyro.conf.arg(aliases=("--data",))] = None
    user_col: str = "user_id"
    item_col: str = "item_id"
    time_column: str = ""
    user_features: str = "user_age,user_gender"
    categorical: str = ""
    exclude_history: bool = False
    min_count: Count = 2
    valid_share: Share = 0.2
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


@dataclass(frozen=True)
class Dataset:
    """Sequences, and what is known of their users.

    Attributes:
        sequences: What each user took.
        schema: Of the users' features.
        log: All rows, the oldest first.
        user_frame: The features before they were encoded, U rows.
        users: Matrix of the features, float32 [U, C].
        golden: Raw request rows.
        sha256: Tells the data from other data.
    """

    sequences: Sequences
    schema: FeatureSchema
    log: pd.DataFrame
    user_frame: pd.DataFrame
    users: Tensor
    golden: list[Row]
    sha256: str


class YouTubeDNNEvaluation(SequencesEvaluation):
    """The last item of each user, to be found by the user's features and history."""

    floor = "popularity"

    def __init__(self, config: Config) -> None:
        self.data = load(config)
        world = DEFAULT_FOLDER if config.uses_default_data else None
        super().__init__(self.data.sequences, config.exclude_history, world)
        self.frame = self.data.user_frame.iloc[self.holdout.users]
        self.train_frame, self.data_sha256 = self.data.log, self.data.sha256

    def rows(self) -> list[Any]:
        """Features and histories."""
        tokens = ["", UNKNOWN_TOKEN, *self.data.sequences.vocabulary]
        features = request_rows(self.data.schema, self.frame)
        return [
            {USER_FEATURES_KEY: row, HISTORY_KEY: [tokens[item] for item in history]}
            for row, history in zip(features, self.holdout.histories, strict=True)
        ]


def evaluation(config: Config, _: Sequence[str] = ()) -> YouTubeDNNEvaluation:
    """What the model is judged on."""
    return YouTubeDNNEvaluation(config)


def train(config: Config) -> Path:
    """Train, report and write the artifacts; returns their folder."""
    test = evaluation(config)
    statistics = validation.check("youtube_dnn", test.train_frame, [], config)
    data = test.data
    vocabulary = data.sequences.vocabulary
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
    history = fit(network, data, config)

    # These vectors are scored here, go to the index, and are what the network reads histories by.
    vectors = network.all_item_vectors().detach()

    def scorer(holdout: Holdout) -> Scores:
        scores: Scores = (embed(network, data, holdout) @ vectors.T).numpy()
        return scores

    reports = test.reports("youtube_dnn", test.rank(scorer))
    Console().print(metric_table(reports, "The last item of each history"))

    weights, features = network_bytes(network), data.schema.to_json()
    with run.writing_artifacts(
        "youtube_dnn",
        META_FILE,
        config,
        arch_version=ARCH_VERSION,
        reports=reports,
        golden=golden(network, data),
        vocabularies=data.schema.vocabularies() | {HISTORY_KEY: vocabulary},
        features=features,
        space_id=space_id(weights, [features, vocabulary]),
        data_sha256=data.sha256,
        statistics=statistics,
    ) as folder:
        (folder / WEIGHTS_FILE).write_bytes(weights)
        save_item_vectors(folder, vocabulary, vectors.numpy())
        save_loss(folder, history, "cross-entropy")
    return config.folder("youtube_dnn")


def load(config: Config) -> Dataset:
    """Read and encode the data.

    Raises:
        DataError: If the data cannot be trained on; says where and why.
    """
    if config.uses_default_data:
        if not DEFAULT_FOLDER.exists():
            logger.info("no --data: generating a synthetic world in %s", DEFAULT_FOLDER)
        generate_sequences(DEFAULT_FOLDER)
    data = config.data(DEFAULT_FOLDER, Path(SEQUENCES_FILE).stem)
    features, categorical = split_names(config.user_features), split_names(config.categorical)
    if not features:
        raise DataError("--user-features: expected a column or more")
    if taken_names := {USER_FEATURES_KEY, HISTORY_KEY}.intersection(features):
        raise DataError(
            f"--user-features {', '.join(taken_names)}: a request's row has another use for that "
            "key; rename the column"
        )
    if stray := [name for name in categorical if name not in features]:
        raise DataError(f"--categorical {','.join(stray)}: expected names of --user-features")
    log = read_table(
        data.table,
        [name for name in features if name not in categorical],
        [config.user_col, config.item_col, *categorical],
        order_by=config.time_column or None,
    )
    taken = sequences.encode(
        log[config.user_col],
        log[config.item_col],
        min_count=config.min_count,
        valid_share=config.valid_share,
        seed=config.seed,
    )
    users = log.groupby(log[config.user_col].to_numpy())[features].last().loc[list(taken.users)]
    schema = fit_schema(users, features, categorical)
    return Dataset(
        sequences=taken,
        schema=schema,
        log=log,
        user_frame=users,
        users=torch.from_numpy(to_matrix(schema, users)),
        golden=golden_rows(taken, schema, users),
        sha256=data.sha256(log),
    )


def fit(network: YouTubeDNN, data: Dataset, config: Config) -> dict[str, list[float]]:
    """Train by a softmax over the items, at every step of every history.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.
    """
    owners, histories, targets = map(
        torch.from_numpy, windows(data.sequences.train, config.max_history)
    )
    network.inputs.fit(data.users)
    n_items = len(data.sequences.vocabulary)
    counts = torch.bincount(targets.flatten(), minlength=n_items + FIRST_TOKEN_INDEX)
    loss = (
        full_softmax(network)
        if n_items <= config.full_softmax_items
        else sampled_softmax(network, counts[FIRST_TOKEN_INDEX:], config.sampled_items)
    )

    def step(index: Tensor) -> Tensor:
        users = hide_some(data.users[owners[index]], network.inputs.categories)
        history, target = histories[index], targets[index]
        hidden = (torch.rand(history.shape) < OOV_SHARE) & (history >= FIRST_TOKEN_INDEX)
        history = history.masked_fill(hidden, OOV_INDEX)
        steps = target >= FIRST_TOKEN_INDEX
        return loss(network.at_steps(users, history, steps), target[steps] - FIRST_TOKEN_INDEX)

    holdout = data.sequences.valid
    expected = torch.from_numpy(holdout.targets) - FIRST_TOKEN_INDEX
    known = expected[expected >= 0]

    def validate() -> Tensor:
        network.eval()
        users = embed(network, data, holdout)[expected >= 0]
        parts = zip(torch.split(users, EMBED_ROWS), torch.split(known, EMBED_ROWS), strict=True)
        return torch.stack([loss(*part) * len(part[1]) for part in parts]).sum() / len(known)

    return fit_steps(network, len(owners), step, validate, config)


def windows(train: Sequence[Indices], length: int) -> tuple[Indices, Indices, Indices]:
    """Cut sequences so that each step is predicted once, with half a window before it or more.

    Args:
        train: Indices of what each user took, U arrays.
        length: Of a window.

    Returns:
        Whose it is, int64 [windows]; the history, and at the place of its last item what came
        next, 0 where that is not to be predicted, both int64 [windows, length].
    """
    owners, histories, targets = [], [], []
    for user, items in enumerate(train):
        before = np.concatenate([[MISSING_INDEX], items[:-1]])
        stop = len(items)
        while stop > 0:
            start = max(stop - length, 0)
            first = stop - (length + 1) // 2 if start else 0
            owners.append(user)
            histories.append(before[start:stop])
            targets.append(np.where(np.arange(start, stop) >= first, items[start:stop], 0))
            stop = first
    return (
        np.array(owners, dtype=np.int64),
        pad_histories(histories, length).numpy(),
        pad_histories(targets, length).numpy(),
    )


def full_softmax(network: YouTubeDNN) -> Loss:
    """Cross-entropy over all items."""

    def loss(users: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(users @ network.all_item_vectors().T / network.temperature, targets)

    return loss


def sampled_softmax(network: YouTubeDNN, counts: Tensor, n_sampled: int) -> Loss:
    """Cross-entropy over a sample of the items (Bengio & Senecal, 2008).

    Args:
        network: The network.
        counts: How often each item is a target, int64 [N]; items are drawn by its power .75.
        n_sampled: Items drawn for each batch.
    """
    q = counts.clamp_min(1) ** 0.75
    q = q / q.sum()
    # The log of how often an item is drawn comes off its logit: popular ones are drawn too often.
    log_q = q.log()

    def loss(users: Tensor, targets: Tensor) -> Tensor:
        sampled = torch.multinomial(q, n_sampled, replacement=True)
        index = torch.cat([targets, sampled]) + FIRST_TOKEN_INDEX
        own, others = torch.split(network.item_vectors(index), [len(targets), n_sampled])
        own_logits = (users * own).sum(1) / network.temperature - log_q[targets]
        logits = users @ others.T / network.temperature - log_q[sampled]
        logits = logits.masked_fill(sampled == targets[:, None], -torch.inf)
        logits = torch.cat([own_logits[:, None], logits], dim=1)
        return cross_entropy(logits, torch.zeros_like(targets))

    return loss


@torch.inference_mode()
def embed(network: YouTubeDNN, data: Dataset, holdout: Holdout) -> Tensor:
    """Vectors of users after their histories, float32 [B, D]."""
    network.eval()
    parts = [holdout[i : i + EMBED_ROWS] for i in range(0, len(holdout.users), EMBED_ROWS)]
    return torch.cat(
        [
            network(data.users[part.users], pad_histories(part.histories, network.max_history))
            for part in parts
        ]
    )


def golden_rows(taken: Sequences, schema: FeatureSchema, users: pd.DataFrame) -> list[Row]:
    """Raw request rows: features with gaps, histories with unknown items, or none at all."""
    tokens = ["", UNKNOWN_TOKEN, *taken.vocabulary]
    rows: list[Row] = []
    for features, items in zip(tabular_rows(schema, users), taken.items, strict=False):
        history = [tokens[item] for item in items[:-1]]
        rows.append({USER_FEATURES_KEY: features, HISTORY_KEY: history})
    rows[2::8] = [row[USER_FEATURES_KEY] for row in rows[2::8]]
    for row in rows[4::8]:
        row[HISTORY_KEY].append(UNKNOWN_TOKEN)
    return rows


def golden(network: YouTubeDNN, data: Dataset) -> Golden:
    """The golden rows with the vectors that the training code computes."""
    vectors = embed_rows(network, data.schema, data.sequences.vocabulary, data.golden)
    return Golden(data.golden, vectors.tolist())


@torch.inference_mode()
def embed_rows(
    network: YouTubeDNN, schema: FeatureSchema, vocabulary: Sequence[str], rows: Sequence[Row]
) -> Tensor:
    """Vectors of raw request rows, float32 [B, D]."""
    index = {token: i for i, token in enumerate(vocabulary, FIRST_TOKEN_INDEX)}
    histories = [
        np.array(
            [index.get(item, OOV_INDEX) for item in row.get(HISTORY_KEY) or []], dtype=np.int64
        )
        for row in rows
    ]
    matrix = golden_matrix(schema, [row.get(USER_FEATURES_KEY, row) for row in rows])
    vectors: Tensor = network(
        torch.from_numpy(matrix), pad_histories(histories, network.max_history)
    )
    return vectors


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return run.run_training(train, tyro.cli(Config, args=argv))


if __name__ == "__main__":
    sys.exit(main())
