"""The doctor: each finding on its own, and none on a sound machine."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from archive import catalog
from archive.checks import archives, artifact_folders
from scripts import doctor
from serving import checks
from serving import run_folder as instance
from serving import server as torchserve
from serving.budget import JAVA_BYTES, Budget
from serving.checks import Check, Finding, Machine
from serving.ports import free_ports
from serving.settings import Settings
from serving.testing import make_archive

HANDLER = "class Handler:\n    pass\n"
CONFIG = "minWorkers: 2\nmaxWorkers: 2\n"
GB = 10**9


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the model ``first`` and every folder that its settings name."""
    for folder in ("archive/first", "handlers", "store", "t", "artifacts/first/1.0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "archive" / "first" / catalog.CONFIG_FILE).write_text(CONFIG)
    (tmp_path / "handlers" / "first_handler.py").write_text(HANDLER)
    make_archive(tmp_path / "store", "first", HANDLER, config=CONFIG)
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    return tmp_path


@pytest.fixture
def env(root: Path) -> dict[str, str]:
    """The environment of a server of the checkout."""
    names = ("INFERENCE_PORT", "MANAGEMENT_PORT", "METRICS_PORT", "SIDECAR_PORT")
    ports = dict(zip(names, map(str, free_ports(4)), strict=True))
    return {**ports, "MODEL_STORE": f"{root}/store", "LOG_LOCATION": f"{root}/logs"}


@pytest.fixture
def machine(root: Path, env: dict[str, str]) -> Machine:
    """A sound machine."""
    found = doctor.this_machine(env, root / "artifacts")
    return replace(found, budget=Budget(cores=2, memory_bytes=100 * GB))


def only(findings: Iterator[Finding]) -> Finding:
    [finding] = findings
    return finding


@pytest.mark.parametrize("check", doctor.CHECKS, ids=lambda check: check.find.__name__)
def test_nothing_is_found_on_a_sound_machine(
    check: Check, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GB))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    shutil.rmtree(machine.artifacts_dir / "first")
    assert list(check.find(machine)) == []


def test_java_that_is_missing(
    root: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(root))
    finding = only(checks.java(machine))
    assert f"JAVA_HOME={root}: cannot run" in finding.what
    assert finding.fix.startswith("unset JAVA_HOME")
    monkeypatch.setattr(torchserve, "java", lambda: root / "bin" / "java")
    assert only(checks.java(machine)).fix == "run: make setup"


def test_kill_that_is_missing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert only(checks.kill_command(machine)).fix == "apt-get install procps"


def test_port_that_is_taken(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", machine.settings.metrics_port))
        taken.listen()
        finding = only(checks.ports(machine))
        assert finding.fatal
        assert finding.fix.endswith("make serve METRICS_PORT=<port>")
        with instance.claim(machine.settings.run_folder):  # then the server itself holds it
            assert list(checks.ports(machine)) == []


def test_archive_that_is_missing_damaged_or_of_an_unknown_model(
    root: Path, machine: Machine
) -> None:
    mar = root / "store" / "first.mar"
    mar.write_bytes(mar.read_bytes().replace(b"pass", b"fail"))
    assert "first_handler.py" in only(archives(machine)).what
    mar.unlink()
    assert only(archives(machine)).fix == "make train archive MODEL=first"
    unknown = only(archives(replace(machine, models=["frist"])))
    assert unknown == Finding(f"{root}/store/frist.mar is missing", "choose from first")


def test_archive_that_is_older_than_its_sources(root: Path, machine: Machine) -> None:
    assert list(archives(machine)) == []
    (root / "archive" / "first" / catalog.CONFIG_FILE).write_text(CONFIG + "batchSize: 9\n")
    (root / "handlers" / "first_handler.py").write_text(HANDLER + "# changed\n")
    (root / "artifacts" / "first" / "1.0" / "sample_request.json").write_text("{}")
    (root / "artifacts" / "first" / "2.0").mkdir()
    os.utime(root / "artifacts" / "first" / "1.0", (0, 0))
    finding = only(archives(machine))
    assert not finding.fatal
    assert finding.what.partition("has outdated archives: first 1.0: ")[2].split(", ") == [
        "archive/first/model-config.yaml was edited",
        "first_handler.py changed",
        f"{root}/artifacts/first has the newer 2.0",
        f"{root}/artifacts/first/1.0/sample_request.json differs",
    ]
    assert finding.fix.startswith("make archive, ")
    second = replace(machine, models=["first", "first"])
    assert "has outdated archives: first 1.0, first 1.0: " in only(archives(second)).what


def test_artifacts_that_are_incomplete(machine: Machine) -> None:
    assert only(artifact_folders(machine)).fatal


def test_memory_that_is_too_small_for_the_workers(machine: Machine) -> None:
    tight = replace(machine, budget=Budget(2, JAVA_BYTES + GB // 2))
    finding = only(checks.memory(tight))
    assert "2 workers and Java may take 2.2 GB, 2.1 GB are free" in finding.what
    with instance.claim(tight.settings.run_folder):
        assert list(checks.memory(tight)) == []


def test_workers_beyond_the_cores(machine: Machine) -> None:
    finding = only(checks.cores(replace(machine, budget=Budget(1, 100 * GB))))
    assert finding.what == "first: 2 workers x 1 threads are more than 1 cores"
    assert finding.fix == "make tune MODEL=first"


@pytest.mark.parametrize(("hard", "fix"), [(65536, "ulimit -n 4096"), (1024, "raise the hard")])
def test_limit_of_open_files(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, hard: int, fix: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    assert only(checks.open_files(machine)).fix.startswith(fix)


def test_disk_without_room(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=GB // 10))
    assert len(list(checks.disk(machine))) == 3


def test_leftovers_of_killed_runs(root: Path, machine: Machine) -> None:
    killed = root / "t" / "recmar-8080"
    killed.mkdir()
    (killed / "pid").write_text("1")
    staged = machine.settings.model_store / "first-v2.mar"  # by a deploy
    old = [root / "t" / "recmar-bench-x", root / "artifacts" / "first" / ".writing-x", staged]
    for folder in old:
        folder.mkdir()
        os.utime(folder, (0, 0))
    (root / "t" / "recmar-tune-in-use").mkdir()
    with instance.claim(machine.settings.run_folder):
        fixes = [finding.fix for finding in checks.leftovers(machine)]
    assert fixes == [f"rm -r {path}" for path in sorted([killed, *old])]


def test_temporary_folder_with_a_long_path(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 100)
    assert only(checks.socket_path(machine)).fix == "choose a shorter TMPDIR"


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"INFERENCE_HOST": "0.0.0.0"}, "can query the models"),
        ({"METRICS_HOST": "0.0.0.0"}, "can read names of models"),
        (
            {"SIDECAR_HOST": "0.0.0.0", "RELOAD_API_KEY": "k", "TOKEN_AUTH": "1"},
            "requires no token",
        ),
    ],
)
def test_exposure(
    machine: Machine, env: dict[str, str], variables: dict[str, str], complaint: str
) -> None:
    settings = Settings.from_env({**env, **variables})
    finding = only(checks.exposure(replace(machine, settings=settings)))
    assert complaint in finding.what
    assert not finding.fatal


def test_archives_from_elsewhere(
    root: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "config.properties").write_text("enable_model_api=true\nallowed_urls=https://.*\n")
    monkeypatch.setattr(checks, "PROPERTIES", root / "config.properties")
    assert only(checks.exposure(machine)).fix == "set allowed_urls=none"


def test_missing_wrk_is_only_a_warning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert not only(checks.load_generator(machine)).fatal


def test_exit_status_and_table(
    root: Path,
    env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    flags = ["--artifacts-dir", str(root / "nothing")]
    picked = (checks.ports, archives, artifact_folders)
    monkeypatch.setattr(doctor, "CHECKS", [c for c in doctor.CHECKS if c.find in picked])
    assert doctor.main(flags) == 0
    monkeypatch.setenv("ENABLED_MODELS", "first,other[1]")
    assert doctor.main(flags) == 1
    out = capsys.readouterr().out
    assert "other[1].marismissing->choosefromfirst" in "".join(out.split())  # of folded lines
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.setenv("METRICS_PORT", "x")
    assert doctor.main(flags) == 1
    assert "METRICS_PORT=x: expected a port" in capsys.readouterr().err
