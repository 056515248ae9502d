"""Doctor: each finding on its own, and nothing where all is well."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from archive import catalog
from scripts import doctor
from scripts.doctor import Finding, Patient
from serving import run_folder as instance
from serving import server as torchserve
from serving.budget import JAVA_BYTES, Budget
from serving.ports import free_ports
from serving.settings import Settings
from serving.testing import make_archive

HANDLER = "class Handler:\n    pass\n"
CONFIG = "minWorkers: 2\nmaxWorkers: 2\n"
GB = 10**9


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the model ``first``; all that its settings name is in it."""
    for folder in ("archive/first", "handlers", "store", "t", "artifacts/first/1.0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "archive" / "first" / catalog.CONFIG_FILE).write_text(CONFIG)
    (tmp_path / "handlers" / "first_handler.py").write_text(HANDLER)
    make_archive(tmp_path / "store", "first", HANDLER, config=CONFIG)
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    return tmp_path


@pytest.fixture
def patient(root: Path) -> Patient:
    """One that is well."""
    names = ("INFERENCE_PORT", "MANAGEMENT_PORT", "METRICS_PORT", "SIDECAR_PORT")
    ports = dict(zip(names, map(str, free_ports(4)), strict=True))
    env = {**ports, "MODEL_STORE": f"{root}/store", "LOG_LOCATION": f"{root}/logs"}
    budget = Budget(cores=2, memory_bytes=100 * GB)
    return Patient(Settings.from_env(env), env, ["first"], root / "artifacts", budget)


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    return finding


@pytest.mark.parametrize("check", doctor.CHECKS, ids=lambda check: check.__name__)
def test_nothing_is_found_where_all_is_well(
    check: Callable[[Patient], Iterator[Finding]], patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GB))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    shutil.rmtree(patient.artifacts_dir / "first")
    assert list(check(patient)) == []


def test_java_that_is_missing(
    root: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(root))
    finding = only(doctor.java(patient))
    assert f"JAVA_HOME={root}: cannot run" in finding.what
    assert finding.mend.startswith("unset JAVA_HOME")
    monkeypatch.setattr(torchserve, "java", lambda: root / "bin" / "java")
    assert only(doctor.java(patient)).mend == "run: make setup"


def test_kill_that_is_missing(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert only(doctor.kill_command(patient)).mend == "apt-get install procps"


def test_port_that_is_taken(patient: Patient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", patient.settings.metrics_port))
        taken.listen()
        finding = only(doctor.ports(patient))
        assert finding.fatal
        assert finding.mend.endswith("make serve METRICS_PORT=<port>")
        with instance.claim(patient.settings.run_folder):  # then it is the instance's own
            assert list(doctor.ports(patient)) == []


def test_archive_that_is_missing_damaged_or_of_no_model(root: Path, patient: Patient) -> None:
    mar = root / "store" / "first.mar"
    mar.write_bytes(mar.read_bytes().replace(b"pass", b"fail"))
    assert "first_handler.py" in only(doctor.archives(patient)).what
    mar.unlink()
    assert only(doctor.archives(patient)).mend == "make train archive MODEL=first"
    unknown = only(doctor.archives(replace(patient, models=["frist"])))
    assert unknown == Finding(f"{root}/store/frist.mar is missing", "choose from first")


def test_archive_that_is_older_than_what_it_is_made_from(root: Path, patient: Patient) -> None:
    assert list(doctor.archives(patient)) == []
    (root / "archive" / "first" / catalog.CONFIG_FILE).write_text(CONFIG + "batchSize: 9\n")
    (root / "handlers" / "first_handler.py").write_text(HANDLER + "# changed\n")
    (root / "artifacts" / "first" / "1.0" / "sample_request.json").write_text("{}")
    (root / "artifacts" / "first" / "2.0").mkdir()
    os.utime(root / "artifacts" / "first" / "1.0", (0, 0))
    finding = only(doctor.archives(patient))
    assert not finding.fatal
    assert finding.what.partition("outdated: ")[2].split(", ") == [
        "archive/first/model-config.yaml was edited",
        "first_handler.py changed",
        f"{root}/artifacts/first has the newer 2.0",
        f"{root}/artifacts/first/1.0/sample_request.json is another file",
    ]
    assert finding.mend.startswith("make archive MODEL=first")


def test_artifacts_that_are_not_whole(patient: Patient) -> None:
    assert only(doctor.artifact_folders(patient)).fatal


def test_memory_that_does_not_hold_the_workers(patient: Patient) -> None:
    tight = replace(patient, budget=Budget(2, JAVA_BYTES + GB // 2))
    finding = only(doctor.memory(tight))
    assert "2 workers and Java may take 2.2 GB, 2.1 GB are free" in finding.what
    with instance.claim(tight.settings.run_folder):
        assert list(doctor.memory(tight)) == []


def test_workers_beyond_the_cores(patient: Patient) -> None:
    finding = only(doctor.cores(replace(patient, budget=Budget(1, 100 * GB))))
    assert finding.what == "first: 2 workers x 1 threads are more than 1 cores"
    assert finding.mend == "make tune MODEL=first"


@pytest.mark.parametrize(("hard", "mend"), [(65536, "ulimit -n 4096"), (1024, "raise the hard")])
def test_limit_of_open_files(
    patient: Patient, monkeypatch: pytest.MonkeyPatch, hard: int, mend: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    assert only(doctor.open_files(patient)).mend.startswith(mend)


def test_disk_without_room(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GB // 10))
    assert len(list(doctor.disk(patient))) == 3


def test_leftovers_of_killed_runs(root: Path, patient: Patient) -> None:
    killed = root / "t" / "recmar-8080"
    killed.mkdir()
    (killed / "pid").write_text("1")
    staged = patient.settings.model_store / "first-v2.mar"  # by a deploy
    old = [root / "t" / "recmar-bench-x", root / "artifacts" / "first" / ".writing-x", staged]
    for folder in old:
        folder.mkdir()
        os.utime(folder, (0, 0))
    (root / "t" / "recmar-tune-in-use").mkdir()
    with instance.claim(patient.settings.run_folder):
        mends = [finding.mend for finding in doctor.leftovers(patient)]
    assert mends == [f"rm -r {path}" for path in sorted([killed, *old])]


def test_temporary_folder_with_a_long_path(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 100)
    assert only(doctor.socket_path(patient)).mend == "choose a shorter TMPDIR"


@pytest.mark.parametrize(
    ("env", "complaint", "fatal"),
    [
        ({"INFERENCE_HOST": "0.0.0.0"}, "can ask the models", False),
        ({"METRICS_HOST": "0.0.0.0"}, "reads names of models", False),
        ({"SIDECAR_HOST": "10.0.0.7"}, "can have models replaced", True),
        (
            {"SIDECAR_HOST": "0.0.0.0", "RELOAD_API_KEY": "k", "TOKEN_AUTH": "1"},
            "asks for no token",
            False,
        ),
    ],
)
def test_exposure(patient: Patient, env: dict[str, str], complaint: str, fatal: bool) -> None:
    env = {**patient.env, **env}
    finding = only(doctor.exposure(replace(patient, settings=Settings.from_env(env), env=env)))
    assert complaint in finding.what
    assert finding.fatal == fatal


def test_archives_from_elsewhere(
    root: Path, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "config.properties").write_text("enable_model_api=true\nallowed_urls=https://.*\n")
    monkeypatch.setattr(doctor, "PROPERTIES", root / "config.properties")
    assert only(doctor.exposure(patient)).mend == "set allowed_urls=none"


def test_missing_wrk_is_only_a_warning(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not only(doctor.load_generator(patient)).fatal


def test_exit_status_and_table(
    root: Path,
    patient: Patient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in patient.env.items():
        monkeypatch.setenv(name, value)
    flags = ["--artifacts-dir", str(root / "nothing")]
    monkeypatch.setattr(doctor, "CHECKS", (doctor.ports, doctor.archives, doctor.artifact_folders))
    assert doctor.main(flags) == 0
    monkeypatch.setenv("ENABLED_MODELS", "first,other[1]")
    assert doctor.main(flags) == 1
    out = capsys.readouterr().out
    assert "other[1].marismissing->choosefromfirst" in "".join(out.split())  # of folded lines
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.setenv("METRICS_PORT", "x")
    assert doctor.main(flags) == 1
    assert "METRICS_PORT=x: expected a port" in capsys.readouterr().err
