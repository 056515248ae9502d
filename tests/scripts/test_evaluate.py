"""The gate: a worse version does not ship, and archives score as training said they would."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from archive import catalog
from archive.gate.compare import Comparison, GateError, Scored, compare
from archive.registry.store import Registry
from scripts import evaluate
from tests.examples import Example, model_names, module, train
from tests.examples.dssm import TEXTS
from tests.examples.xgb import DEFAULT as XGB
from training.evaluation import ALL, ArchiveOutput, Evaluation, Results, Rows

# Metrics of training that the gate has no use for: they look into the model, or at its truth.
ONLY_TRAINING = r"gain|same_cluster.*|hadamard_auc|nmi"

# Models that are judged by the same code as another one.
TWINS = ("deepfm", "two_tower", "user_tower", "word2vec")


@pytest.fixture(scope="module")
def versions(
    artifact_folder: Callable[[Example], Path], data_folder: Callable[[Example], Path]
) -> Path:
    """Artifacts of xgb: v1, v2 that is as good, and two that are worse."""
    root = artifact_folder(XGB).parents[1]
    flags = [*XGB.arguments, "--data-path", str(data_folder(XGB)), "--artifacts-dir", str(root)]
    for version, own in {
        "v2": ["--seed", "1"],
        "stump": ["--max-depth", "1", "--epochs", "3"],
        "few": ["--features", "item_ctr,user_age"],
    }.items():
        assert train("xgb", *flags, "--version", version, *own) == 0
    return root


@pytest.fixture
def gate(versions: Path, tmp_path: Path) -> Callable[..., int]:
    """Runs the command for a version of xgb."""

    def run(version: str, *flags: str) -> int:
        places = ["--model-dir", str(versions), "--registry", str(tmp_path / "registry")]
        output = ["--report", str(tmp_path / "report.html")]
        return evaluate.main(["--model", "xgb", "--version", version, *places, *output, *flags])

    return run


@pytest.mark.parametrize(
    "example",
    [module(model).EXAMPLES[0] for model in model_names() if model not in TWINS] + [TEXTS],
    ids=str,
)
def test_archive_scores_as_training_did(
    example: Example,
    artifact_folder: Callable[[Example], Path],
    archive_file: Callable[[Example], Path],
    tmp_path: Path,
) -> None:
    config = evaluate.Config(
        model=example.model,
        version=example.version,
        model_dir=artifact_folder(example).parents[1],
        registry=tmp_path / "registry",
    )
    model = catalog.get(example.model)
    new = evaluate.open_archive(config, example.version, tmp_path)
    evaluation = evaluate.held_out(model, new, None, config)
    scored = evaluate.scored(new, evaluation)
    metrics = json.loads((artifact_folder(example) / "metrics.json").read_text())["test"]
    # Without labels, training measures calibration over all pairs, which the gate does not.
    skipped = ONLY_TRAINING + (
        "|auc|logloss|normalized_entropy|ece|calibration_ratio" if example is TEXTS else ""
    )
    of_training = {
        name: value
        for name, value in metrics[model.artifacts].items()
        if not re.fullmatch(skipped, name)
    }
    assert evaluation.report(scored.results) == pytest.approx(of_training, rel=1e-3)
    assert evaluation.floor in evaluation.baselines()


def test_version_that_is_as_good_as_the_champion_passes(
    gate: Callable[..., int],
    archive_file: Callable[[Example], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.register("xgb", "v1", archive_file(XGB))
    registry.promote("xgb", "v1")
    capsys.readouterr()
    assert gate("v2", "--slice", "user_gender") == evaluate.PASSED
    output = capsys.readouterr().out
    assert "PASS xgb v2 against v1" in output
    assert "user_gender 1" in output
    tables = output.partition("note:")[0].splitlines()
    assert max(map(len, tables)) <= 80
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert re.findall(r"(?:src|href)=.(?!#)", page) == []
    for part in ("ROC", "Calibration", "Predictions", "auc lost when a feature is shuffled"):
        assert part in page


def test_worse_version_fails_though_the_old_one_reads_features_that_it_lacks(
    gate: Callable[..., int], versions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--min-ratio", "auc=0.995", "--max-ratio", "logloss=9"]
    assert gate("few", "--current-version", "v1", *limits) == evaluate.FAILED
    old = json.loads((versions / "xgb" / "v1" / "metrics.json").read_text())["test"]["xgb"]
    failure = rf"FAIL auc: expected >= 0\.7\d+ \(0\.995 x {old['auc']:.4f}\), got 0\.6"
    output = capsys.readouterr().out
    assert re.search(failure, output)
    assert "FAIL logloss" not in output


def test_first_version_is_judged_against_the_baselines(
    gate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate("v1") == evaluate.PASSED
    output = capsys.readouterr().out
    assert "PASS xgb v1 against linear" in output
    assert "user_gender 2" in output
    assert "user_age 25 to 35" in output
    assert gate("stump", "--slice", "user_gender") == evaluate.FAILED
    assert "FAIL logloss: expected <= 0.4" in capsys.readouterr().out


def test_tampered_archive_is_not_judged(
    gate: Callable[..., int],
    archive_file: Callable[[Example], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry = Registry(tmp_path / "registry")
    stored = registry.folder / registry.register("xgb", "v1", archive_file(XGB)).path
    with zipfile.ZipFile(stored, "a") as archive:
        archive.writestr("handlers/extra.py", "print('hello')")
    assert gate("v1") == evaluate.NOT_JUDGED
    assert "sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("version", "flags", "message"),
    [
        ("v9", [], "it has .*v1.*v2"),
        ("v1", ["--current-version", "v9"], "it has .*v1.*v2"),
        ("v1", ["--current-version", "v1"], "name another one: --current-version"),
        ("v1", ["--data-path", "no/such.csv"], "no/such.csv: no such file"),
        ("v1", ["--min-ratio", "auc"], 'expected metric=ratio, got "auc"'),
        ("v1", ["--slice", "city"], "missing column city"),
    ],
)
def test_mistake_is_told_and_leaves_no_verdict(
    gate: Callable[..., int],
    version: str,
    flags: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gate(version, *flags) == evaluate.NOT_JUDGED
    assert re.search(message, capsys.readouterr().err)


class Means(Evaluation):
    """Results are numbers; their mean is the metric."""

    primary, chance, floor = "mean", 0.0, "none"

    def __init__(self, groups: Results | None, n: int) -> None:
        self.groups, self.frame = groups, pd.DataFrame({"half": np.arange(n) % 2})

    def rows(self) -> list[object]:
        """None."""
        return []

    def results(self, output: ArchiveOutput) -> Results:
        """None."""
        raise NotImplementedError

    def baselines(self) -> dict[str, Results]:
        """None."""
        return {}

    def report(self, results: Results, rows: Rows = ALL) -> dict[str, float]:
        """The mean."""
        return {"mean": float(results[rows].mean())}


def compared(groups: Results | None, old: Results, new: Results, **limits: float) -> Comparison:
    before, after = Scored("old", old, {}), Scored("new", new, {})
    return compare(Means(groups, len(old)), before, after, limits, {}, ["half"])


@pytest.mark.parametrize("n", [400, 20_000])
def test_interval_is_that_of_a_paired_difference(n: int) -> None:
    rng = np.random.default_rng(0)
    old = 100 * rng.normal(size=n)
    [change] = compared(None, old, old + 1 + rng.normal(size=n)).changes
    half = 1.96 / np.sqrt(n)
    assert change.difference == pytest.approx(1, abs=2 * half)
    assert change.margin == pytest.approx(half, rel=0.3)


def test_results_of_a_group_are_drawn_together() -> None:
    noise = np.repeat(np.random.default_rng(0).normal(size=100), 50)
    zeros, groups = np.zeros(5000), np.repeat(np.arange(100), 50)
    alone, together = (compared(g, zeros, noise).changes[0] for g in (None, groups))
    assert together.margin / alone.margin == pytest.approx(np.sqrt(50), rel=0.3)


def test_slice_that_gets_worse_is_marked_though_the_whole_passes() -> None:
    old = 1 + np.random.default_rng(0).normal(size=4000)
    comparison = compared(None, old, old + np.where(np.arange(4000) % 2, 1.0, -0.5), mean=0.99)
    assert comparison.failures == []
    assert {part.value: part.is_worse for part in comparison.slices} == {"0": True, "1": False}


def test_ratio_of_a_negative_metric_gives_way_downwards() -> None:
    numbers = np.full(200, -1.0)
    assert compared(None, numbers, numbers * 1.005, mean=0.99).failures == []
    assert len(compared(None, numbers, numbers * 1.02, mean=0.99).failures) == 1


def test_metric_that_there_is_not_is_told() -> None:
    with pytest.raises(GateError, match="no metric auc; there are mean"):
        compared(None, np.zeros(200), np.zeros(200), auc=0.99)
