"""Torch modules that training and serving share, one model a file."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def save_network(network: nn.Module, path: Path) -> None:
    """Write ``model_state_dict`` and ``config``; the same weights give the same bytes.

    Args:
        network: Its ``config`` is a dictionary of the arguments that build it again.
        path: A ``.pt`` file.
    """
    torch.save({"model_state_dict": network.state_dict(), "config": network.config}, path)


def load_network(network_class: type[Network], path: Path, device: torch.device) -> Network:
    """Build a network from a file of :func:`save_network`, ready for inference."""
    checkpoint = torch.load(path, map_location=device, weights_only=True)
    network = network_class(**checkpoint["config"])
    network.load_state_dict(checkpoint["model_state_dict"])
    return network.to(device).eval()
