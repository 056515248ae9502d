"""The training loop of the torch models."""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from handlers.networks.layers import RankingNetwork
from handlers.schema import OOV_INDEX

# Share of category values that training hides, so that the out-of-vocabulary embedding is learned.
OOV_SHARE = 0.015

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingError(ValueError):
    """Training cannot go on; the message says what to change."""


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained.

    Attributes:
        epochs: At most so many passes over the training split.
        batch_size: Instances a step.
        lr: Highest learning rate of a one-cycle schedule (Smith, 2018, arXiv:1708.07120).
        weight_decay: Of everything but the embeddings.
        embedding_decay: Of the embeddings.
        patience: Stop after so many epochs without a better validation loss.
        seed: Of the initial weights, the order of the rows and the dropout.
    """

    epochs: int = 10
    batch_size: int = 1024
    lr: float = 2e-3
    weight_decay: float = 1e-4
    embedding_decay: float = 3.0
    patience: int = 3
    seed: int = 0


def seed_everything(seed: int) -> None:
    """Make a run repeatable: one thread, since sums in another order differ in the last bit."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)


def fit(
    network: RankingNetwork,
    loss: Loss,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    config: FitConfig,
) -> dict[str, list[float]]:
    """Train a network in place; it ends with the weights of its best epoch.

    Args:
        network: Maps float32 [B, C] to what ``loss`` takes; the statistics of its input layer come
            from ``train``.
        loss: Of the network's output and targets [B, ...], float32 [].
        train: Matrix float32 [rows, C] and targets float32 [rows, ...].
        valid: The same for the split that selects the epoch.
        config: How to train.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.

    Raises:
        TrainingError: If the loss is not finite.
    """
    matrix, targets = train
    network.inputs.fit(matrix)

    def step(index: Tensor) -> Tensor:
        batch = hide_some(matrix[index], network.inputs.categories)
        return loss(network(batch), targets[index])

    def validate() -> Tensor:
        return loss(predict(network, valid[0]), valid[1])

    return fit_steps(network, len(matrix), step, validate, config)


def fit_steps(
    network: nn.Module,
    n_rows: int,
    step: Callable[[Tensor], Tensor],
    validate: Callable[[], Tensor],
    config: FitConfig,
) -> dict[str, list[float]]:
    """Train a network in place by the loss of batches of row numbers; :func:`fit` for the rest.

    Args:
        network: In training mode when ``step`` is called.
        n_rows: Rows of the training split.
        step: Loss of some of them, given their numbers, int64 [B] -> float32 [].
        validate: Loss on the split that selects the epoch, float32 []; runs without gradients.
        config: How to train.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.

    Raises:
        TrainingError: If the loss is not finite.
    """
    optimizer = torch.optim.AdamW(_parameter_groups(network, config), lr=config.lr, fused=True)
    n_batches = -(-n_rows // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * n_batches
    )
    history: dict[str, list[float]] = {"train": [], "valid": []}
    best, best_weights = float("inf"), copy.deepcopy(network.state_dict())
    loop_s = 0.0
    with tqdm(
        total=config.epochs * n_rows, unit="row", unit_scale=True, disable=None, leave=False
    ) as bar:
        for epoch in range(1, config.epochs + 1):
            network.train()
            started, total = time.perf_counter(), torch.zeros(())
            for index in torch.split(torch.randperm(n_rows), config.batch_size):
                value = step(index)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += value.detach() * len(index)
                bar.update(len(index))
            loop_s += time.perf_counter() - started
            history["train"].append(float(total) / n_rows)
            with torch.inference_mode():
                history["valid"].append(float(validate()))
            if not math.isfinite(history["valid"][-1]):
                raise TrainingError(f"epoch {epoch}: the loss is not finite; try a lower --lr")
            bar.set_description(f"epoch {epoch}, valid loss {history['valid'][-1]:.4f}")
            if history["valid"][-1] < best:
                best, best_weights = history["valid"][-1], copy.deepcopy(network.state_dict())
            elif epoch - 1 - history["valid"].index(best) >= config.patience:
                break
    network.load_state_dict(best_weights)
    network.eval()
    logger.info(
        "best of %d epochs: %d; %.0f rows/s in the training loop",
        epoch,
        history["valid"].index(best) + 1,
        epoch * n_rows / loop_s,
    )
    return history


@torch.inference_mode()
def predict(
    network: nn.Module, matrix: Tensor, method: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Apply a network, or another method of it, in evaluation mode, float32 [rows, ...]."""
    network.eval()
    call = method or network
    return torch.cat([call(part) for part in torch.split(matrix, 8192)])


def _parameter_groups(network: nn.Module, config: FitConfig) -> list[dict[str, object]]:
    """Embeddings decay apart: most of them are seen in few batches, but decay in all."""
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


def hide_some(batch: Tensor, categories: list[int], share: float = OOV_SHARE) -> Tensor:
    """Make some categories of a batch out of vocabulary, in place, float32 [B, C]."""
    if categories:
        hidden = torch.rand(len(batch), len(categories)) < share
        batch[:, categories] = batch[:, categories].masked_fill(hidden, float(OOV_INDEX))
    return batch
