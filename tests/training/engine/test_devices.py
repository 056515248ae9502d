"""``--device`` is refused where it cannot be had, and trains on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from archive import catalog
from tests.examples import Example, examples, train, training_script
from training import artifacts
from training.engine import devices

NETWORKS = [e for e in examples() if training_script(e.model).Config.library == "torch"]


@pytest.mark.parametrize("model", catalog.model_names())
def test_a_gpu_that_is_not_there_is_refused_before_data_is_read(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_has_gpu", lambda: False)
    places = ["--data-path", "nowhere.csv", "--artifacts-dir", str(tmp_path)]
    assert train(model, "--device", "cuda", *places) == 1
    expected = "expected a GPU, found none; see that nvidia-smi lists one, or leave the flag out"
    if training_script(model).Config.library == "gensim":
        expected = "gensim trains this model, on CPUs only; leave the flag out"
    assert capsys.readouterr().err == f"error: --device cuda: {expected}\n"


def test_pytorch_for_cpus_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert train("deepfm", "--device", "cuda") == 1
    assert f"expected PyTorch for CUDA, got {torch.__version__}" in capsys.readouterr().err


def test_workers_of_ray_train_on_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("deepfm", "--device", "cuda", "--engine", "ray") == 1
    assert "--device cuda: expected --engine local, got ray" in capsys.readouterr().err


def test_too_little_memory_is_an_error_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    script = training_script("deepfm")
    monkeypatch.setattr(script, "evaluation", full)
    assert train("deepfm") == 1
    assert "the memory of the GPU is too small; lower --batch-size" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("example", NETWORKS, ids=str)
def test_every_network_learns_on_a_gpu(
    example: Example, data_folder: Callable[[Example], Path], tmp_path: Path
) -> None:
    places = ["--data-path", str(data_folder(example)), "--artifacts-dir", str(tmp_path)]
    flags = [*example.arguments, *places, "--device", "cuda"]
    for version in ("v1", "v2"):
        assert train(example.model, *flags, "--version", version) == 0
    folders = [tmp_path / catalog.get(example.model).artifacts / name for name in ("v1", "v2")]
    report = artifacts.read_meta(folders[0])["metrics"]
    assert {m: v for m, v in example.reaches.items() if report[m] < v} == {}, report
    first, second = ([p.read_bytes() for p in f.glob("*_model.pt")] for f in folders)
    assert len(first) == 1
    assert first == second
