"""Training on Ray gives the same artifacts, even when a worker dies."""

from __future__ import annotations

import json
import math
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

import training.engine
from archive import catalog
from tests.examples import Example, examples, load_handler, predict, train, training_script
from training import artifacts, train_deepfm
from training.data.sources import DataError
from training.engine import boosting, fit
from training.engine.tree_parameters import BoostConfig, booster_parameters
from training.engine.worker import EngineConfig, Worker, seed_everything
from training.tasks.ranking.data import load_ranking_data
from training.tasks.ranking.world import impressions

on_ray = pytest.importorskip("training.engine.ray", exc_type=ModuleNotFoundError)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray[.]")

SHARDS = 3
KILL_TIMEOUT_S = 60.0

FAST = {
    "deepfm": ["--epochs", "5", "--batch-size", "256", "--lr", "5e-3"],
    "xgb": ["--epochs", "60"],
}

# An example of every other model that several workers can train.
OTHERS = {
    run: example
    for example in reversed(examples())
    if (run := catalog.get(example.model).artifacts) not in FAST
    and training_script(run).Config.library != "gensim"
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table cut into several files."""
    folder = tmp_path_factory.mktemp("shards")
    table = impressions(20_000, seed=3)[0]
    for i in range(SHARDS):
        table[i::SHARDS].to_csv(folder / f"part-{i}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def two_workers() -> Iterator[None]:
    """A cluster of two workers."""
    with on_ray.cluster(EngineConfig(engine="ray", num_workers=2)):
        yield


def weights(folder: Path) -> bytes:
    """Return the content of the weights file."""
    [path] = folder.glob("*_model.*")
    return path.read_bytes()


@contextmanager
def killing_a_worker(checkpoints: Path) -> Iterator[None]:
    """Kill a worker once it has saved a checkpoint, which must happen in the block."""
    killed, seen = [], set[Path]()

    def kill() -> None:
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while len(seen) < 2 and time.monotonic() < deadline:  # the second proves the first
            seen.update(checkpoints.glob("*/checkpoint_*"))
            time.sleep(0.02)
        worker = next(
            process
            for process in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in "".join(process.cmdline())
        )
        worker.kill()
        killed.append(worker.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        killer.join()
    assert killed


class Mortal(Worker):
    """Dies after a number of saves, and leaves the last state."""

    def __init__(self, saves: float = math.inf, state: bytes | None = None) -> None:
        self.saves, self.state = saves, state

    def saved(self) -> Any:
        """Return the state that it was given."""
        return self.state and pickle.loads(self.state)

    def save(self, state: dict[str, Any]) -> None:
        """Save, and die if this was the last time."""
        self.saves -= 1
        self.state = pickle.dumps(state)
        if not self.saves:
            raise KeyboardInterrupt

    def order(self, n_rows: int, seed: int, epoch: int) -> Tensor:
        """Shuffle by the epoch, as a worker of several does."""
        return torch.randperm(n_rows, generator=torch.Generator().manual_seed(epoch))


def resumed(loop: Callable[[Any, Worker], Any], job: Callable[[], Any]) -> tuple[Any, Any]:
    """Return the results of a loop that runs through, and of one that another worker resumes."""
    mortal = Mortal(saves=2)
    with pytest.raises(KeyboardInterrupt):
        loop(job(), mortal)
    return loop(job(), Mortal()), loop(job(), Mortal(state=mortal.state))


def test_a_network_resumed_from_a_checkpoint_ends_with_the_same_weights() -> None:
    def job() -> fit._Job:
        seed_everything(0)
        rows, network = torch.rand(600, 3), torch.nn.Linear(3, 1)

        def step(index: Tensor) -> Tensor:
            return mse_loss(network(rows[index])[:, 0], rows[index].prod(dim=1))

        config = fit.FitConfig(epochs=5, batch_size=100)
        return fit._Job(network, 500, step, lambda: step(torch.arange(500, 600)), config)

    (whole, losses), (other, again) = resumed(fit._training_loop, job)
    assert losses == again
    assert len(losses["valid"]) == 5
    assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_trees_resumed_from_a_checkpoint_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(boosting, "CHECKPOINT_TREES", 3)

    def job() -> boosting._Job:
        draws = np.random.default_rng(0)
        x = draws.random((2_000, 3), dtype=np.float32)
        y = (x.sum(axis=1) + draws.normal(0, 0.3, 2_000) > 1.5).astype(np.float32)
        config = BoostConfig(engine="ray", patience=5, max_depth=3)
        rows = boosting.Rows(x[:1_000], y[:1_000]), boosting.Rows(x[1_000:], y[1_000:])
        return boosting._Job(config, booster_parameters(config), *rows)

    (whole, losses), (other, again) = resumed(boosting._boost, job)
    assert losses == again
    assert len(losses["valid"]) > 6
    assert whole.save_raw() == other.save_raw()


@pytest.mark.parametrize("model", ["deepfm", "xgb"])
def test_a_model_of_two_workers_is_as_good_as_that_of_one(
    model: str, shards: Path, two_workers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "cluster", lambda _: nullcontext())  # already running

    def fit_with(engine: str) -> Path:
        places = ["--data-path", str(shards), "--artifacts-dir", str(tmp_path)]
        run = ["--version", engine, "--checkpoint-dir", str(tmp_path / "checkpoints")]
        assert train(model, *FAST[model], *places, *run, "--engine", engine) == 0
        return tmp_path / model / engine

    alone = fit_with("local")
    with killing_a_worker(tmp_path / "checkpoints") if model == "deepfm" else nullcontext():
        together = fit_with("ray")
    assert list((tmp_path / "checkpoints").glob("*")) == []
    assert {path.name for path in together.iterdir()} == {path.name for path in alone.iterdir()}
    assert len({weights(folder) for folder in (together, alone)}) == 2
    metas = [artifacts.read_meta(folder) for folder in (together, alone)]
    for key in ("features", "data_sha256", "statistics"):
        assert metas[0][key] == metas[1][key]
    goldens = [json.loads((f / "golden.json").read_text()) for f in (together, alone)]
    assert goldens[0]["rows"] == goldens[1]["rows"]
    served = predict(load_handler(model, together), goldens[0]["rows"])
    assert served == pytest.approx(goldens[0]["predictions"], abs=1e-5)
    assert metas[0]["metrics"]["auc"] == pytest.approx(metas[1]["metrics"]["auc"], abs=0.015)


@pytest.mark.parametrize("model", sorted(OTHERS))
def test_every_other_network_learns_with_two_workers(
    model: str,
    two_workers: None,
    data_folder: Callable[[Example], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_ray, "cluster", lambda _: nullcontext())  # already running
    example = OTHERS[model]
    places = ["--data-path", str(data_folder(example)), "--artifacts-dir", str(tmp_path)]
    assert train(model, *example.arguments, *places, "--version", "v1", "--engine", "ray") == 0
    report = artifacts.read_meta(tmp_path / model / "v1")["metrics"]
    assert {m: v for m, v in example.reaches.items() if report[m] < v} == {}, report


def test_a_wrong_cell_in_a_file_that_the_cluster_reads_gives_the_usual_message(
    two_workers: None, tmp_path: Path
) -> None:
    for i in range(SHARDS):
        impressions(100, seed=i)[0].to_csv(tmp_path / f"part-{i}.csv", index=False)
    bad = tmp_path / f"part-{SHARDS - 1}.csv"
    bad.write_text(bad.read_text().replace("\n", "\nabc,", 2))
    messages = []
    for engine in ("local", "ray"):
        config = train_deepfm.Config(data_path=str(tmp_path), engine=engine)
        with pytest.raises(DataError) as error:
            load_ranking_data(config, ["label"])
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert bad.name in messages[0]


@pytest.mark.parametrize("model", ["graph_recall", "item2vec", "word2vec"])
def test_ray_is_refused_for_models_that_gensim_trains(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(model, "--engine", "ray", "--artifacts-dir", str(tmp_path)) == 1
    assert "error: --engine ray: gensim trains this model" in capsys.readouterr().err


def test_without_ray_the_message_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(training.engine, "ray")
    monkeypatch.delitem(sys.modules, "training.engine.ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert train("deepfm", "--engine", "ray") == 1
    assert "pip install -c constraints.txt '.[distributed]'" in capsys.readouterr().err


def test_zero_workers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("xgb", "--engine", "ray", "--num-workers", "0") == 1
    assert "--num-workers 0: expected 1 or more" in capsys.readouterr().err
