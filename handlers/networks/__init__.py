"""Torch modules that training and serving share, one model a file."""

import io
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
    path.write_bytes(network_bytes(network))


def network_bytes(network: nn.Module) -> bytes:
    """The content of a file that :func:`load_network` reads, as :func:`save_network` writes it."""
    buffer = io.BytesIO()
    torch.save({"model_state_dict": network.state_dict(), "config": network.config}, buffer)
    return buffer.getvalue()


def load_network(network_class: type[Network], path: Path, device: torch.device) -> Network:
    """Build a network from a file of :func:`save_network`, ready for inference."""
    checkpoint = torch.load(path, map_location=device, weights_only=True)
    network = network_class(**checkpoint["config"])
    network.load_state_dict(checkpoint["model_state_dict"])
    return network.to(device).eval()
