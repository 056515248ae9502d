"""The gate: a worse version does not ship, and archives score as they did in training."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from archive import catalog, package
from archive.gate.judge import GateConfig, held_out, open_archive
from archive.gate.reference import choose_reference
from archive.gate.scoring import score
from archive.registry.store import Registry
from handlers.errors import UserError
from scripts import evaluate, register_model
from serving.model_store import kept_path
from serving.testing import running_server
from tests.examples import Example, model_names, module, train
from tests.examples.dssm import TEXTS
from tests.examples.xgb import DEFAULT as XGB

# Metrics that only training reports: they need the model's weights, or the data's ground truth.
ONLY_TRAINING = r"gain|same_cluster.*|hadamard_auc|nmi"

# Models that the same code judges as another one.
TWINS = ("deepfm", "two_tower", "user_tower", "word2vec")


@pytest.fixture(scope="module")
def versions(
    artifact_folder: Callable[[Example], Path], data_folder: Callable[[Example], Path]
) -> Path:
    """Artifacts of xgb: v1, an equally good v2, and two worse versions."""
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
    """Return a function that runs the command for a version of xgb."""

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
    config = GateConfig(
        model=example.model,
        version=example.version,
        model_dir=artifact_folder(example).parents[1],
        registry=tmp_path / "registry",
    )
    model = catalog.get(example.model)
    new = open_archive(config, example.version, tmp_path)
    evaluation = held_out(model, new, None, config)
    scored = score(new, evaluation)
    metrics = json.loads((artifact_folder(example) / "metrics.json").read_text())["test"]
    # Without labels, training measures calibration over all pairs; the gate does not.
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
    versions: Path,
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
    assert "note: reference: v1 is the registry's champion" in output
    assert f"verdict: in the registry, {registry.folder}, for xgb v2" in output
    places = ["--registry", str(registry.folder), "--model-dir", str(versions)]
    assert register_model.main(["--model", "xgb", "--version", "v2", *places]) == 0
    entry = registry.entry("xgb", "v2")
    assert entry.gate == "passed"
    assert entry.verdict is not None
    assert (entry.verdict.reference, entry.verdict.judged_as) == ("v1", "xgb")
    assert entry.verdict.data_sha256 == entry.data_sha256
    auc = entry.verdict.metrics["auc"]
    assert auc.old is not None
    assert auc.limit == pytest.approx(0.99 * auc.old)
    saved = (registry.folder / entry.verdict.report).read_bytes()
    assert saved == (tmp_path / "report.html").read_bytes()
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
    assert (
        "reference: the baselines, because the registry has no champion and nothing serves"
        in output
    )
    assert "user_gender 2" in output
    assert "user_age 25 to 35" in output
    assert gate("stump", "--slice", "user_gender") == evaluate.FAILED
    assert "FAIL logloss: expected <= 0.4" in capsys.readouterr().out


def test_what_serves_here_is_the_reference(
    gate: Callable[..., int],
    versions: Path,
    archive_file: Callable[[Example], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    shutil.copyfile(archive_file(XGB), store / "xgb.mar")
    registry = Registry(tmp_path / "registry")
    with running_server(store) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(tempfile, "tempdir", None)
        places = package.Config(store=store, artifacts_dir=versions)
        other = package.package(catalog.get("xgb"), "v2", places)  # as make archive does
        capsys.readouterr()
        assert gate("v2") == evaluate.PASSED
        output = capsys.readouterr().out
        assert "PASS xgb v2 against v1" in output
        port = server.env["INFERENCE_PORT"]
        assert f"note: reference: v1 serves on port {port} of this machine" in output

        assert choose_reference(registry, "xgb", "v1").version == ""  # itself, and nothing else
        assert choose_reference(registry, "mmoe", "v1").version == ""
        registry.register("xgb", "v2", other)
        registry.promote("xgb", "v2")
        both = choose_reference(registry, "xgb", "v3")
        assert both.version == "v1"
        assert "though the registry's champion is v2" in both.reason
        assert choose_reference(registry, "xgb", "v1").version == "v2"

        kept_path(store, "xgb", "v1").unlink()
        with pytest.raises(
            UserError, match=r"its archive is neither .*/xgb\.mar nor .*/v1\.mar nor"
        ):
            choose_reference(registry, "xgb", "v3")
        monkeypatch.setenv("MANAGEMENT_PORT", "1")
        stale = choose_reference(registry, "xgb", "v3")
        assert stale.version == "v2"
        assert "does not say what serves" in stale.reason
        with pytest.raises(UserError, match="does not say which mmoe serves"):
            choose_reference(registry, "mmoe", "v3")
    assert choose_reference(registry, "xgb", "v3").version == "v2"


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
def test_mistake_is_reported_and_leaves_no_verdict(
    gate: Callable[..., int],
    version: str,
    flags: Sequence[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gate(version, *flags) == evaluate.NOT_JUDGED
    assert re.search(message, capsys.readouterr().err)
