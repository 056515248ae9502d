"""Start a network from the weights of an earlier version: ``--init-from``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from handlers.feature import OOV_INDEX
from handlers.models.inputs import FeatureInputs
from training.engine.worker import TrainingError

# Arguments of a network's constructor that follow from the data.
FREE_ARGUMENTS = ("cardinalities", "n_items", "target_means")
# Arguments whose name is not that of their flag.
FLAGS = {"embed_dim": "embedding_dim", "pretrained": "embeddings"}


@torch.no_grad()
def start_from(network: nn.Module, base: nn.Module) -> None:
    """Copy the weights of an earlier network, and the statistics of its inputs.

    A new token starts with the out-of-vocabulary embedding, as which it was served before. Fixed
    vectors of categories stay those of the new network.

    Args:
        network: The new network. Its vocabularies begin with those of ``base``.
        base: The earlier network, of the same class.

    Raises:
        TrainingError: If the two differ in more than their vocabularies.
    """
    _expect_same_arguments(network, base)
    fields = {
        f"{name}.embedding.weight": (old.sizes, new.sizes)
        for name, new in network.named_modules()
        if isinstance(new, FeatureInputs)
        for old in [base.get_submodule(name)]
        if isinstance(old, FeatureInputs)
    }
    before = base.state_dict()
    for name, values in network.state_dict().items():
        old = before[name]
        if name.endswith(".idf"):  # 0 for tokens that training never saw
            values.copy_(torch.where(old > 0, old, values))
        elif ".pretrained." in name and name.endswith(".vectors"):
            continue
        elif values.shape == old.shape and name not in fields:
            values.copy_(old)
        else:
            old_sizes, new_sizes = fields.get(name, ([len(old)], [len(values)]))
            parts = zip(old.split(old_sizes), values.split(new_sizes), strict=True)
            for old_rows, rows in parts:
                _copy_rows(old_rows, rows)


def _copy_rows(old: Tensor, new: Tensor) -> None:
    """Copy the rows of a table into a longer one; the others become the out-of-vocabulary row."""
    new[: len(old)] = old
    new[len(old) :] = old[OOV_INDEX]


def _expect_same_arguments(network: Any, base: Any) -> None:
    before, now = base.config, network.config
    changed = [
        f"--{FLAGS.get(name, name).replace('_', '-')} was {_shown(before, name)}, "
        f"is {_shown(now, name)}"
        for name in {**before, **now}
        if not name.endswith(FREE_ARGUMENTS) and before.get(name) != now.get(name)
    ]
    if type(network) is not type(base) or changed:
        raise TrainingError(f"--init-from: expected the same network; {'; '.join(changed)}")


def _shown(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name, "the default")
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
