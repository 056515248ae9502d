"""The training loop of PyTorch models."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from handlers.feature import MISSING_INDEX, OOV_INDEX
from handlers.models.inputs import FeatureInputs
from handlers.models.layers import RankingNetwork
from training.bounds import Count, LearningRate, Seed, Weight
from training.engine.launch import run_loop
from training.engine.warm_start import start_from
from training.engine.worker import EngineConfig, Step, TrainingError, Worker

# Share of category values that training hides, so that the out-of-vocabulary embedding is learned.
OOV_SHARE = 0.015
# Rows that lose a category in an epoch, and their largest share: in a small table, the usual share
# would be too few rows to learn from.
OOV_ROWS = 24
MAX_OOV_SHARE = 0.1
# Steps in an epoch: with fewer, ten epochs of 3,000 rows end before a network learns the base rate.
MIN_STEPS = 20
# Fewer where the instances of a batch are each other's negatives: smaller batches lose some.
MIN_STEPS_OF_TOWERS = 8
# Rows that a network predicts in one go.
CHUNK_ROWS = 8192

logger = logging.getLogger(__name__)

# Mean loss of logits [B, ...] and targets [B, ...] by the weights of the rows [B]: float32 [].
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
History = dict[str, list[float]]


@dataclass(frozen=True)
class FitConfig(EngineConfig):
    """How a network is trained.

    Attributes:
        epochs: Most passes over the training split.
        batch_size: Instances in a step, of all workers together; fewer if an epoch over a small
            table would have only a few steps.
        lr: Highest learning rate of a one-cycle schedule (Smith, 2018, arXiv:1708.07120).
        weight_decay: Weight decay of everything but the embeddings.
        embedding_decay: Weight decay of the embeddings.
        patience: Stop after this many epochs without a better validation loss.
        seed: Seed of the initial weights, the order of the rows and the dropout.
    """

    epochs: Count = 10
    batch_size: Count = 1024
    lr: LearningRate = 2e-3
    weight_decay: Weight = 1e-4
    embedding_decay: Weight = 3.0
    patience: Count = 3
    seed: Seed = 0


class WeightedRows(NamedTuple):
    """The rows of a split.

    Attributes:
        matrix: Inputs, float32 [B, C].
        targets: Targets, float32 [B, T].
        weights: Weights in the loss, float32 [B]; their mean is 1.
    """

    matrix: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: str) -> WeightedRows:
        """Copy the rows to a device."""
        return WeightedRows(*(part.to(device) for part in self))


def fit(
    network: RankingNetwork,
    loss: Loss,
    train: WeightedRows,
    valid: WeightedRows,
    config: FitConfig,
    base: nn.Module | None = None,
) -> History:
    """Train a network in place, and leave it with the weights of its best epoch.

    Args:
        network: Maps float32 [B, C] to the logits that ``loss`` takes. The statistics of its input
            layer are computed from ``train``.
        loss: Weighted mean loss of logits and targets.
        train: The training split.
        valid: The split that selects the epoch.
        config: How to train.
        base: The network of an earlier version to start from.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.

    Raises:
        TrainingError: If the loss is not finite, or ``base`` is another kind of network.
    """
    network.inputs.fit(train.matrix)
    (matrix, targets, weights), valid = train.to(config.device), valid.to(config.device)
    share = min(max(OOV_SHARE, OOV_ROWS / len(matrix)), MAX_OOV_SHARE)

    def step(index: Tensor) -> Tensor:
        batch = hide_tokens(matrix[index], network.inputs, share)
        return loss(network(batch), targets[index], weights[index])

    def validate() -> Tensor:
        return loss(predict(network, valid.matrix), valid.targets, valid.weights)

    return fit_steps(network, len(matrix), step, validate, config, base, MIN_STEPS)


def fit_steps(
    network: nn.Module,
    n_rows: int,
    step: Step,
    validate: Callable[[], Tensor],
    config: FitConfig,
    base: nn.Module | None = None,
    min_steps: int = MIN_STEPS_OF_TOWERS,
) -> History:
    """Train as :func:`fit` does, with a loss that takes the row numbers of a batch.

    Args:
        network: The network; in training mode when ``step`` is called. It is on the device of the
            run while it trains, and ends on the CPU.
        n_rows: Rows of the training split.
        step: Loss of the rows with these numbers, int64 [B] -> float32 []; on the device.
        validate: Loss on the split that selects the epoch, float32 []; runs without gradients, on
            the device.
        config: How to train.
        base: The network of an earlier version to start from.
        min_steps: Least steps in an epoch; the batch size is lowered to reach them.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.

    Raises:
        TrainingError: If the loss is not finite, or ``base`` is another kind of network.
    """
    if base is not None:
        start_from(network, base)
    config = replace(config, batch_size=max(1, min(config.batch_size, n_rows // min_steps)))
    job = _Job(network.to(config.device), n_rows, step, validate, config)
    weights, history = run_loop("torch", _training_loop, config, [job])
    network.to("cpu").load_state_dict(weights)
    network.eval()
    return history


@dataclass(frozen=True)
class _Job:
    """The arguments of :func:`fit_steps`, which travel to the workers."""

    network: nn.Module
    n_rows: int
    step: Step
    validate: Callable[[], Tensor]
    config: FitConfig


def _training_loop(job: _Job, worker: Worker) -> tuple[dict[str, Tensor], History]:
    """Train a worker's network; return the weights of its best epoch, and the losses."""
    training = _Training(job, worker)
    config, losses = job.config, training.history["valid"]
    n_epochs_before, loop_s = len(losses), 0.0
    with tqdm(
        total=config.epochs * training.n_rows,
        initial=n_epochs_before * training.n_rows,
        unit="row",
        unit_scale=True,
        disable=None,
        leave=False,
    ) as bar:
        while len(losses) < config.epochs and not _stalled(losses, config.patience):
            started = time.perf_counter()
            training.run_epoch(bar)
            loop_s += time.perf_counter() - started
            training.validate()
            summary = f"epoch {len(losses)}, valid loss {losses[-1]:.4f}"
            bar.set_description(summary)
            worker.save({"summary": summary, **training.state()})
    n_rows = (len(losses) - n_epochs_before) * training.n_rows * worker.size
    logger.info(
        "best of %d epochs: %d; %.0f rows/s in the training loop",
        len(losses),
        losses.index(min(losses)) + 1,
        n_rows / max(loop_s, 1e-9),
    )
    return training.best_weights, training.history


class _Training:
    """One worker's part in training, an epoch at a time.

    Attributes:
        n_rows: Rows that the worker sees in an epoch.
        history: Loss after each epoch, by ``train`` and ``valid``.
        best_weights: Weights after the epoch with the lowest validation loss.
    """

    def __init__(self, job: _Job, worker: Worker) -> None:
        network, config = job.network, job.config
        self._job, self._worker = job, worker
        self.n_rows = job.n_rows // worker.size
        self._batch_size = -(-config.batch_size // worker.size)
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(network, config), lr=config.lr, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            config.lr,
            total_steps=config.epochs * -(-self.n_rows // self._batch_size),
        )
        self.history: History = {"train": [], "valid": []}
        self.best_weights = copy.deepcopy(network.state_dict())
        if state := worker.saved():
            network.load_state_dict(state["network"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self.history, self.best_weights = state["history"], state["best_weights"]
        self._step = worker.wrap(network, job.step)

    def state(self) -> dict[str, Any]:
        """Return what another worker needs to go on from here."""
        network, losses = self._job.network.state_dict(), self.history["valid"]
        # Tensors that are the same in both are written once.
        is_best = losses[-1] == min(losses)
        return {
            "network": network,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "history": self.history,
            "best_weights": network if is_best else self.best_weights,
        }

    def run_epoch(self, bar: tqdm[Any]) -> None:
        """Take the steps of one epoch, and add its mean loss to the history."""
        self._job.network.train()
        epoch = len(self.history["train"])
        order = self._worker.order(self._job.n_rows, self._job.config.seed, epoch)
        total = torch.zeros((), device=self._job.config.device)
        for index in torch.split(order.to(self._job.config.device), self._batch_size):
            loss = self._step(index)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._schedule.step()
            total += loss.detach() * len(index)
            bar.update(len(index))
        n_rows = self.n_rows * self._worker.size
        self.history["train"].append(float(self._worker.total(total)) / n_rows)

    def validate(self) -> None:
        """Add the validation loss to the history, and keep the weights if it is the lowest.

        Raises:
            TrainingError: If the loss is not finite.
        """
        losses = self.history["valid"]
        with torch.inference_mode():
            # Only one worker validates: others would draw other samples.
            is_first = self._worker.rank == 0
            loss = self._job.validate() if is_first else torch.zeros(())
        losses.append(float(self._worker.total(loss)))
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"epoch {len(losses)}: the loss is not finite; try a lower --lr")
        if losses[-1] == min(losses):
            self.best_weights = copy.deepcopy(self._job.network.state_dict())


def _stalled(losses: Sequence[float], patience: int) -> bool:
    """Return whether none of the last ``patience`` losses is the lowest."""
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


@torch.inference_mode()
def predict(
    network: nn.Module, matrix: Tensor, method: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Apply a network in evaluation mode, float32 [rows, ...].

    Args:
        network: The network.
        matrix: Inputs, float32 [rows, C], on the device of the network.
        method: A method of the network to call instead of ``forward``.
    """
    network.eval()
    call = method or network
    return torch.cat([call(chunk) for chunk in torch.split(matrix, CHUNK_ROWS)])


def _parameter_groups(network: nn.Module, config: FitConfig) -> list[dict[str, object]]:
    """Separate the embeddings: most of them occur in few batches, but decay in every one."""
    named = list(network.named_parameters())
    return [
        {
            "params": [p for name, p in named if "embedding" not in name],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for name, p in named if "embedding" in name],
            "weight_decay": config.embedding_decay,
        },
    ]


def hide_tokens(batch: Tensor, inputs: FeatureInputs, share: float = OOV_SHARE) -> Tensor:
    """Replace some categories and some tokens of lists by out-of-vocabulary, in place.

    Args:
        batch: float32 [B, C].
        inputs: The input layer, which knows the columns.
        share: Share of the tokens.
    """
    hide_some(batch, inputs.categories, share)
    for columns in inputs.list_columns:
        tokens = batch[:, columns]
        hidden = torch.rand(tokens.shape, device=batch.device) < share
        tokens.masked_fill_(hidden & (tokens != MISSING_INDEX), float(OOV_INDEX))
    return batch


def hide_some(batch: Tensor, categories: list[int], share: float) -> Tensor:
    """Replace a random share of the categories by out-of-vocabulary, in place, float32 [B, C]."""
    if categories:
        hidden = torch.rand(len(batch), len(categories), device=batch.device) < share
        batch[:, categories] = batch[:, categories].masked_fill(hidden, float(OOV_INDEX))
    return batch
