"""Weights files, which training writes and the handlers read."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def save_network(network: nn.Module, path: Path) -> None:
    """Write ``model_state_dict`` and ``config``; equal weights give equal bytes.

    Args:
        network: Its ``config`` is a dictionary of its constructor's arguments.
        path: A ``.pt`` file.
    """
    path.write_bytes(network_bytes(network))


def network_bytes(network: nn.Module) -> bytes:
    """Return the content of the file that :func:`save_network` writes."""
    buffer = io.BytesIO()
    torch.save({"model_state_dict": network.state_dict(), "config": network.config}, buffer)
    return buffer.getvalue()


def load_network(network_class: type[Network], path: Path, device: torch.device) -> Network:
    """Load a network from a file of :func:`save_network`, ready for inference."""
    checkpoint = torch.load(path, map_location=device, weights_only=True)
    network = network_class(**checkpoint["config"])
    network.load_state_dict(checkpoint["model_state_dict"])
    return network.to(device).eval().requires_grad_(False)


def traced(function: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Record the operations of a function, to run them without the overhead of Python.

    That overhead is half the time on a small batch. TorchScript is deprecated, but its successors
    need a C++ compiler. The golden rows prove that the recorded operations compute the same.

    Args:
        function: Calls networks of :func:`load_network`; its operations do not depend on values.
        example: An argument of any batch size, on the networks' device.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        recorded: Callable[[Tensor], Tensor] = torch.jit.trace(  # type: ignore[no-untyped-call]
            function, example
        )
    return recorded
