"""An archive holds what its handler needs, and a spoiled archive is refused."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from archive import catalog, describe, package
from handlers.errors import ArchiveError
from handlers.models.deepfm import ARCH_VERSION, META_FILE, WEIGHTS_FILE
from handlers.schema import SCHEMA_VERSION
from handlers.signature import sha256
from serving.archive_file import ArchiveFile
from serving.testing import Server
from tests.conftest import register
from tests.examples import Example, load_handler, module

DEEPFM = module("deepfm").EXAMPLES[0]
ATTEMPTS = 5


@pytest.fixture
def folder(artifact_folder: Callable[[Example], Path], tmp_path: Path) -> Path:
    """A copy of deepfm's artifacts that a test may spoil, ``artifacts/deepfm/v1``."""
    copy = tmp_path / "artifacts" / "deepfm" / "v1"
    shutil.copytree(artifact_folder(DEEPFM), copy)
    return copy


@pytest.fixture
def mar(archive_file: Callable[[Example], Path], tmp_path: Path) -> Path:
    """A copy of deepfm's archive that a test may spoil."""
    return Path(shutil.copy(archive_file(DEEPFM), tmp_path))


def pack(folder: Path, *flags: str) -> int:
    """Package deepfm from an artifact folder into ``store``, next to the root of the artifacts."""
    root = folder.parents[1]
    places = ["--artifacts-dir", str(root), "--store", str(root.parent / "store")]
    return package.main(["--model", "deepfm", *places, *flags])


def read(mar: Path) -> dict[str, bytes]:
    """Return the files of an archive by path."""
    with zipfile.ZipFile(mar) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(mar: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an archive."""
    with zipfile.ZipFile(mar, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def skewed(golden: bytes, by: float) -> bytes:
    """Return golden rows with a prediction 3 that training did not compute."""
    content = json.loads(golden)
    content["predictions"][3] += by
    return json.dumps(content).encode()


def test_same_artifacts_give_the_same_bytes(
    folder: Path, archive_file: Callable[[Example], Path]
) -> None:
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert pack(folder) == 0
    again = folder.parents[2] / "store" / "deepfm.mar"
    assert again.read_bytes() == archive_file(DEEPFM).read_bytes()
    with zipfile.ZipFile(again) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert b"1980" in archive.read("MAR-INF/MANIFEST.json")


def test_archive_holds_the_files_of_the_protocol_and_nothing_else(
    archive_file: Callable[[Example], Path],
) -> None:
    files = read(archive_file(DEEPFM))
    code = {p.relative_to(catalog.ROOT).as_posix() for p in catalog.ROOT.glob("handlers/**/*.py")}
    assert set(files) - code == {
        "MAR-INF/MANIFEST.json",
        "deepfm_feature_meta.json",
        "deepfm_handler.py",
        "deepfm_model.pt",
        "golden.json",
        "metrics.json",
        "model-config.yaml",
        "sample_request.json",
        "signature.json",
        "vocabularies.json",
    }
    assert code <= set(files)
    golden = json.loads(files["golden.json"])
    assert len(golden["rows"]) == len(golden["predictions"]) == 32
    signature = json.loads(files["signature.json"])
    assert signature["model_name"] == "deepfm"
    assert signature["model_version"] == "v1"
    assert signature["output"] == {"type": "number"}
    assert signature["libraries"]["torch"] == torch.__version__
    assert set(signature["files"]) == set(files) - {"signature.json", "MAR-INF/MANIFEST.json"}
    price = signature["features"][2]
    assert (price["name"], price["kind"], price["default"]) == ("item_price", "number", 0.0)
    assert price["train_range"] == pytest.approx([5, 1000], rel=1)


def test_weights_load_without_running_code(archive_file: Callable[[Example], Path]) -> None:
    with zipfile.ZipFile(archive_file(DEEPFM)) as archive, archive.open(WEIGHTS_FILE) as weights:
        checkpoint = torch.load(weights, weights_only=True)
    assert set(checkpoint) == {"model_state_dict", "config"}


def alter(files: dict[str, bytes], name: str) -> None:
    files[name] += b" "


def add(files: dict[str, bytes], name: str) -> None:
    files[name] = b""


def skew(files: dict[str, bytes], name: str) -> None:
    """Skew the golden rows, and adapt the signature to them."""
    files[name] = skewed(files[name], by=1e-3)
    signature = json.loads(files["signature.json"])
    signature["files"][name] = sha256(files[name])
    files["signature.json"] = json.dumps(signature).encode()


def run_another_handler(files: dict[str, bytes], _: str) -> None:
    manifest = json.loads(files["MAR-INF/MANIFEST.json"])
    manifest["model"]["handler"] = "evil.py"
    files["MAR-INF/MANIFEST.json"] = json.dumps(manifest).encode()


SPOILED: list[tuple[str, Callable[[dict[str, bytes], str], Any], str]] = [
    (WEIGHTS_FILE, alter, "deepfm_model.pt was altered: expected sha256 "),
    ("deepfm_handler.py", alter, "deepfm_handler.py was altered"),
    ("handlers/schema.py", alter, "handlers/schema.py was altered"),
    ("golden.json", alter, "golden.json was altered"),
    ("golden.json", dict.pop, "golden.json is missing"),
    ("signature.json", dict.pop, "signature.json is missing"),
    ("torch.py", add, "torch.py is not in signature"),
    ("", run_another_handler, "MANIFEST.json: expected deepfm, v1, deepfm_handler.py, got deepfm"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), SPOILED)
def test_spoiled_archive_is_refused_before_its_code_runs(
    mar: Path, name: str, spoil: Callable[[dict[str, bytes], str], Any], message: str
) -> None:
    files = read(mar)
    write(mar, files)
    ArchiveFile.read(mar)
    spoil(files, name)
    write(mar, files)
    with pytest.raises(ArchiveError, match="run: make archive") as refusal:
        ArchiveFile.read(mar)
    assert message in str(refusal.value)


@pytest.mark.parametrize("size_bytes", [0, 100, -1])
def test_truncated_archive_is_refused(mar: Path, size_bytes: int) -> None:
    mar.write_bytes(mar.read_bytes()[:size_bytes])
    with pytest.raises(ArchiveError, match=r"deepfm\.mar: not a readable archive"):
        ArchiveFile.read(mar)


def test_golden_row_that_is_off_is_named(folder: Path) -> None:
    handler = load_handler("deepfm", folder)
    golden = folder / "golden.json"
    golden.write_bytes(skewed(golden.read_bytes(), by=0.9e-5))
    handler.replay_golden_rows(golden)
    golden.write_bytes(skewed(golden.read_bytes(), by=0.4e-5))
    with pytest.raises(ArchiveError, match=r"golden\.json: row 3: training computed 0\.\d+, this"):
        handler.replay_golden_rows(golden)


def test_replay_leaves_no_counts_behind(folder: Path) -> None:
    handler = load_handler("deepfm", folder)
    handler.replay_golden_rows(folder / "golden.json")
    counts = [getattr(handler.counts, name).sum() for name in ("missing", "out_of_range")]
    assert np.sum(counts) == 0


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (WEIGHTS_FILE, alter, "deepfm_model.pt was altered"),
        ("golden.json", skew, "golden.json: row 3: training"),
    ],
)
def test_torchserve_itself_cannot_load_a_spoiled_archive(
    server: Server,
    mar: Path,
    name: str,
    spoil: Callable[[dict[str, bytes], str], None],
    message: str,
) -> None:
    """Not even if nobody checked the archive, as after an upload to the model store."""
    files = read(mar)
    spoil(files, name)
    target = Path(server.env["MODEL_STORE"]) / "spoiled.mar"
    write(target, files)
    try:
        # TorchServe may close the worker's pipe before it has read the reason; then try again.
        for _ in range(ATTEMPTS):
            answer = register(server, target, model_name="spoiled")
            assert answer.status_code == 500, answer.text
            url = f"{server.inference_url}/predictions/spoiled"
            assert requests.post(url, json={"data": [{}]}, timeout=30).status_code in (404, 503)
            [log] = server.temp_folder.glob("logs/torchserve-*.log")
            if message in log.read_text():
                break
        else:
            pytest.fail(f"the log never said: {message}")
    finally:
        requests.delete(f"{server.management_url}/models/spoiled/v1", timeout=30)
        target.unlink()


def edit_meta(folder: Path, **changes: Any) -> None:
    meta = folder / META_FILE
    meta.write_text(json.dumps(json.loads(meta.read_text()) | changes))


@pytest.mark.parametrize(
    ("key", "known"), [("arch_version", ARCH_VERSION), ("schema_version", SCHEMA_VERSION)]
)
def test_artifacts_of_another_version_of_the_code_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], key: str, known: int
) -> None:
    edit_meta(folder, **{key: 99})
    assert pack(folder) == 1
    assert (
        f"deepfm_feature_meta.json: {key}: expected {known}, got 99; "
        "train the model again with this version of the code; run: make train MODEL=deepfm"
    ) in capsys.readouterr().err
    assert not (folder.parents[2] / "store").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / WEIGHTS_FILE).unlink(), "deepfm_model.pt is missing"),
        (lambda f: (f / "golden.json").unlink(), "golden.json is missing"),
        (lambda f: (f / META_FILE).unlink(), "expected one *_meta.json, got 0"),
        (lambda f: (f / META_FILE).write_text("{"), "is not JSON"),
        (lambda f: (f / "vocabularies.json").write_text("{ }"), "was altered after training"),
        (lambda f: shutil.rmtree(f), "has no version; run: make train MODEL=deepfm"),
    ],
)
def test_incomplete_artifacts_are_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Any],
    message: str,
) -> None:
    spoil(folder)
    assert pack(folder) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "train" in error
    assert "Traceback" not in error
    assert not list(folder.parents[2].glob("store/*"))


def test_artifacts_that_the_handler_scores_differently_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = folder / "golden.json"
    golden.write_bytes(skewed(golden.read_bytes(), by=1e-3))
    edit_meta(folder, files={"golden.json": sha256(golden.read_bytes())})
    assert pack(folder) == 1
    assert "row 3: training computed" in capsys.readouterr().err


def test_newest_version_is_packaged_and_a_missing_one_lists_the_known_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = folder.with_name("a-later-one")
    shutil.copytree(folder, newer)
    edit_meta(newer, model_version=newer.name)
    os.utime(folder, (0, 0))
    assert pack(folder) == 0
    mar = folder.parents[2] / "store" / "deepfm.mar"
    assert ArchiveFile.read(mar).version == "a-later-one"

    assert pack(folder, "--version", "v2") == 1
    assert (
        "deepfm has no version v2; it has v1, a-later-one; run: make train MODEL=deepfm VERSION=v2"
    ) in capsys.readouterr().err
    assert ArchiveFile.read(mar).version == "a-later-one"


def test_unknown_model_lists_the_known_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(folder, "--model", "deepfn") == 1
    assert "no model 'deepfn'; there are deepfm, " in capsys.readouterr().err


def test_describe_shows_every_kind_of_model(
    example: Example,
    archive_file: Callable[[Example], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(archive_file(example), tmp_path / f"{example.model}.mar")
    assert describe.main(["--model", example.model, "--store", str(tmp_path)]) == 0
    assert example.version in capsys.readouterr().out


def test_describe_prints_signature_metrics_and_contents(
    mar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert describe.main(["--model", "deepfm", "--store", str(mar.parent)]) == 0
    output = capsys.readouterr().out
    for text in ("v1", "deepfm_handler.py", "item_price", "number", "auc"):
        assert text in output
    assert "deepfm_model.pt" not in output
    assert max(map(len, output.splitlines())) <= 80

    assert describe.main(["--model", "deepfm", "--store", str(mar.parent), "--files"]) == 0
    assert "deepfm_model.pt" in capsys.readouterr().out

    write(mar, {})
    assert describe.main(["--model", "deepfm", "--store", str(mar.parent)]) == 1
    assert "signature.json is missing; run: make archive" in capsys.readouterr().err
