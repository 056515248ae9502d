"""A second sequence model finds all that it shares with the first, which it does not import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from training.engine.fit import FitConfig, fit_steps
from training.engine.worker import seed_everything
from training.metrics.retrieval import Scores, retrieval_report
from training.tasks.next_item.data import NextItemConfig
from training.tasks.next_item.evaluation import HistoryEvaluation
from training.tasks.next_item.losses import softmax_loss
from training.tasks.next_item.split import HeldOut
from training.tasks.next_item.windows import cut_windows, hide_items
from training.tasks.next_item.world import SEQUENCES_FILE, generate_sequences


class LastItemNetwork(nn.Module):
    """Embeds a user as a linear map of the last item's vector."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(2 + n_items, 32)
        self.head = nn.Linear(32, 32)

    @property
    def temperature(self) -> Tensor:
        """Divide nothing."""
        return torch.tensor(1.0)

    def item_vectors(self, index: Tensor) -> Tensor:
        """Look items up."""
        vectors: Tensor = self.item_embedding(index)
        return vectors

    def all_item_vectors(self) -> Tensor:
        """Look the vocabulary up."""
        return self.item_embedding.weight[2:]

    def forward(self, last: Tensor) -> Tensor:
        """Embed users by their last item, int64 [B] -> float32 [B, 32]."""
        vectors: Tensor = self.head(self.item_embedding(last))
        return vectors


@dataclass(frozen=True)
class Config(NextItemConfig, FitConfig):
    """Flags of the second model."""

    model: ClassVar[str] = "second"

    epochs: int = 6
    batch_size: int = 32
    lr: float = 2e-2
    embedding_decay: float = 0.0


@pytest.mark.parametrize("full_softmax_items", [50_000, 0])
def test_second_model_is_trained_and_evaluated_with_the_shared_parts(
    tmp_path: Path, full_softmax_items: int
) -> None:
    generate_sequences(tmp_path / "data", n_users=1_000)
    config = Config(data_path=str(tmp_path / "data" / SEQUENCES_FILE))
    test = HistoryEvaluation(config)
    seed_everything(config.seed)
    network = LastItemNetwork(len(test.split.vocabulary))
    windows = cut_windows(test.split.train, 20)
    loss = softmax_loss(network, windows.targets, full_softmax_items, n_sampled=500)

    def batch_loss(users: Tensor) -> Tensor:
        histories, targets = hide_items(windows.histories[users]), windows.targets[users]
        return loss(network(histories[targets > 1]), targets[targets > 1] - 2)

    def score_items(held_out: HeldOut) -> Scores:
        last = torch.tensor([history[-1] for history in held_out.histories])
        scores: Scores = (network(last) @ network.all_item_vectors().T).detach().numpy()
        return scores

    everyone = torch.arange(len(windows.users))
    fit_steps(network, len(everyone), batch_loss, lambda: batch_loss(everyone[:200]), config)
    found = retrieval_report(test.rank(score_items))["hr_at_10"]
    popularity = test.report(test.baselines()["popularity"])["hr_at_10"]
    assert found > 1.3 * popularity
