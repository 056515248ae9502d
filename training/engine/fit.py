"""The training loop of the torch models."""

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from handlers.models.layers import RankingNetwork
from handlers.schema import OOV_INDEX
from training.bounds import Count, LearningRate, Seed, Weight
from training.engine.launch import run_loop
from training.engine.worker import EngineConfig, Step, TrainingError, Worker

# Share of category values that training hides, so that the out-of-vocabulary embedding is learned.
OOV_SHARE = 0.015
# In an epoch: with fewer, ten epochs of 3,000 rows end before a network knows the base rate.
MIN_STEPS = 20
# Where the rows of a step are each other's negatives, smaller steps have a price.
MIN_STEPS_OF_TOWERS = 8

logger = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
History = dict[str, list[float]]


@dataclass(frozen=True)
class FitConfig(EngineConfig):
    """How a network is trained.

    Attributes:
        epochs: At most so many passes over the training split.
        batch_size: Instances a step, of all workers together; fewer where an epoch over a small
            table would have but a few steps.
        lr: Highest learning rate of a one-cycle schedule (Smith, 2018, arXiv:1708.07120).
        weight_decay: Of everything but the embeddings.
        embedding_decay: Of the embeddings.
        patience: Stop after so many epochs without a better validation loss.
        seed: Of the initial weights, the order of the rows and the dropout.
    """

    epochs: Count = 10
    batch_size: Count = 1024
    lr: LearningRate = 2e-3
    weight_decay: Weight = 1e-4
    embedding_decay: Weight = 3.0
    patience: Count = 3
    seed: Seed = 0


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

    return fit_steps(network, len(matrix), step, validate, config, MIN_STEPS)


def fit_steps(
    network: nn.Module,
    n_rows: int,
    step: Step,
    validate: Callable[[], Tensor],
    config: FitConfig,
    min_steps: int = MIN_STEPS_OF_TOWERS,
) -> History:
    """Train a network in place by the loss of batches of row numbers; :func:`fit` for the rest.

    Args:
        network: In training mode when ``step`` is called.
        n_rows: Rows of the training split.
        step: Loss of some of them, given their numbers, int64 [B] -> float32 [].
        validate: Loss on the split that selects the epoch, float32 []; runs without gradients.
        config: How to train.
        min_steps: Of an epoch, for which the batch size is lowered.

    Returns:
        Loss after each epoch, by ``train`` and ``valid``.

    Raises:
        TrainingError: If the loss is not finite.
    """
    config = replace(config, batch_size=max(1, min(config.batch_size, n_rows // min_steps)))
    job = _Job(network, n_rows, step, validate, config)
    weights, history = run_loop("torch", _loop, config, [job])
    network.load_state_dict(weights)
    network.eval()
    return history


@dataclass(frozen=True)
class _Job:
    """The arguments of :func:`fit_steps`, as a worker is given them."""

    network: nn.Module
    n_rows: int
    step: Step
    validate: Callable[[], Tensor]
    config: FitConfig


def _loop(job: _Job, worker: Worker) -> tuple[dict[str, Tensor], History]:
    """Train a worker's network; returns the weights of its best epoch, and the losses."""
    network, config = job.network, job.config
    n_rows, batch_size = job.n_rows // worker.size, -(-config.batch_size // worker.size)
    optimizer = torch.optim.AdamW(_parameter_groups(network, config), lr=config.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * -(-n_rows // batch_size)
    )
    history: History = {"train": [], "valid": []}
    best_weights = copy.deepcopy(network.state_dict())
    if state := worker.saved():
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history, best_weights = state["history"], state["best_weights"]
    step = worker.wrap(network, job.step)
    valid = history["valid"]
    loop_s, n_done = 0.0, 0
    with tqdm(
        total=config.epochs * n_rows, unit="row", unit_scale=True, disable=None, leave=False
    ) as bar:
        while len(valid) < config.epochs and not _stalled(valid, config.patience):
            network.train()
            started, total = time.perf_counter(), torch.zeros(())
            for index in torch.split(worker.order(job.n_rows, config.seed, len(valid)), batch_size):
                value = step(index)
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += value.detach() * len(index)
                bar.update(len(index))
            loop_s += time.perf_counter() - started
            n_done += n_rows
            history["train"].append(float(worker.total(total)) / (n_rows * worker.size))
            with torch.inference_mode():
                # One of them does: drawn samples make the others' loss another one.
                value = job.validate() if worker.rank == 0 else torch.zeros(())
            valid.append(float(worker.total(value)))
            if not math.isfinite(valid[-1]):
                raise TrainingError(f"epoch {len(valid)}: the loss is not finite; try a lower --lr")
            said = f"epoch {len(valid)}, valid loss {valid[-1]:.4f}"
            bar.set_description(said)
            if valid[-1] == min(valid):
                best_weights = copy.deepcopy(network.state_dict())
            worker.save(
                {
                    "said": said,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "history": history,
                    "best_weights": best_weights,
                }
            )
    logger.info(
        "best of %d epochs: %d; %.0f rows/s in the training loop",
        len(valid),
        valid.index(min(valid)) + 1,
        n_done * worker.size / max(loop_s, 1e-9),
    )
    return best_weights, history


def _stalled(losses: Sequence[float], patience: int) -> bool:
    """Whether the last so many are no better than the best one before."""
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


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
