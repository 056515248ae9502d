"""What a run trains on: ``--device``, and the other flags of the engine that must agree with it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from training.engine.worker import EngineConfig, TrainingError


def check_engine(config: EngineConfig, library: str) -> None:
    """Check that a library can train as the flags say.

    Args:
        config: The device and the engine.
        library: The library that trains the model; all but torch and xgboost train on the CPUs of
            one machine.

    Raises:
        TrainingError: If it cannot; the message says what to do.
    """
    if config.engine != "local" and library not in ("torch", "xgboost"):
        raise TrainingError(
            f"--engine {config.engine}: {library} trains this model, on one machine only; leave "
            "the flag out"
        )
    if config.engine != "local" and config.resume:
        raise TrainingError(
            f"--resume: expected --engine local, got {config.engine}, whose workers continue on "
            "their own as long as this command runs"
        )
    _check_device(config, library)


def _check_device(config: EngineConfig, library: str) -> None:
    if config.device == "cpu":
        return
    flag = f"--device {config.device}"
    if library not in ("torch", "xgboost"):
        raise TrainingError(
            f"{flag}: {library} trains this model, on CPUs only; leave the flag out"
        )
    if config.engine != "local":
        raise TrainingError(
            f"{flag}: expected --engine local, got {config.engine}, whose workers train on CPUs"
        )
    if library == "torch" and torch.version.cuda is None:
        raise TrainingError(
            f"{flag}: expected PyTorch for CUDA, got {torch.__version__}, which is for CPUs; "
            "install PyTorch for CUDA, or leave the flag out"
        )
    if not (torch.cuda.is_available() if library == "torch" else _has_gpu()):
        raise TrainingError(
            f"{flag}: expected a GPU, found none; see that nvidia-smi lists one, or leave the "
            "flag out"
        )
    # Without it, cuBLAS sums in any order, which PyTorch refuses in a run that must repeat.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def tensors(device: str, *arrays: npt.NDArray[Any]) -> Iterator[Tensor]:
    """Copy arrays to a device; on the CPU, share their memory."""
    return (torch.from_numpy(array).to(device) for array in arrays)


def _has_gpu() -> bool:
    """Ask the driver: XGBoost has no function for it, and PyTorch may be built for CPUs."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
