"""The soak disturbs the instance, loses nothing, and reports what is wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import requests

from bench import soak, soak_report, soak_scenario
from bench.soak_record import Disturbance, Record, SentRequest
from handlers.errors import UserError
from serving.testing import Server
from tests.examples import Example, item_tower, xgb


@pytest.mark.slow
def test_a_short_soak_switches_and_kills_and_loses_nothing_else(
    tmp_path: Path,
    artifact_folder: Callable[[Example], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    newest = xgb.EXAMPLES[0]
    older = replace(newest, version="v0")  # with the same features, which the callers send
    artifacts = tmp_path / "artifacts"
    for example in (newest, older, item_tower.EXAMPLES[0]):
        trained = artifact_folder(example)
        shutil.copytree(trained, artifacts.joinpath(*trained.parts[-2:]))
    flags = ["--models", "xgb,item_tower", "--artifacts-dir", str(artifacts)]
    assert soak.main([*flags, "--minutes", "0.4", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"versions switched +[1-9]", out)
    assert re.search(r"workers killed +[1-9]", out)
    assert (tmp_path / "soak.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (KeyboardInterrupt(), 130),
        (UserError("the instance ended"), 1),
        (requests.ConnectionError("refused"), 1),
    ],
)
def test_a_soak_that_ends_early_reports_what_it_saw(
    end: BaseException,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def quiet_until_the_end(_: soak.Config, seen: Record) -> None:
        seen.requests = record().requests
        seen.memory = [(0.0, {"Java": 100 << 20})]
        raise end

    monkeypatch.setattr(soak, "soak", quiet_until_the_end)
    assert soak.main(["--results", str(tmp_path)]) == status
    assert re.search(r"requests +600", capsys.readouterr().out)
    assert (tmp_path / "soak.png").exists()


def test_a_worker_that_is_not_ready_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Described:
        def json(self) -> object:
            return [{"workers": [{"pid": -1, "status": "UNLOADING"}]}]

    def kill(*_: object) -> None:
        raise AssertionError("kill(-1) signals every process")

    monkeypatch.setattr("requests.get", lambda *_, **__: Described())
    monkeypatch.setattr("os.kill", kill)
    server = cast(Server, SimpleNamespace(management_url="http://h"))
    assert soak_scenario.kill_worker(server, "xgb", record()).error == "no worker was READY"


def record(**seen: object) -> Record:
    """Return ten quiet minutes at 100 MB, with the given fields replaced."""
    quiet = {
        "requests": [SentRequest(float(s), 5.0, "xgb", None) for s in range(600)],
        "memory": [(float(s), {"Java": 100 << 20}) for s in range(601)],
    }
    return Record(**(quiet | seen))  # type: ignore[arg-type]


def test_a_quiet_soak_has_no_problem() -> None:
    assert soak_report.report(record())[1] == []


def test_memory_that_keeps_growing_is_a_problem() -> None:
    growing = [(float(s), {"Java": 100 << 20, "workers": s << 16}) for s in range(601)]
    [problem] = soak_report.report(record(memory=growing))[1]
    assert re.fullmatch(r"memory: expected growth of at most 5%, got \d+\.\d%", problem)


def test_a_failed_switch_is_a_problem() -> None:
    events = [Disturbance(60.0, "switch", "xgb", 1.0, "error: http://h: load: a worker died")]
    assert soak_report.report(record(disturbances=events))[1] == [
        "switch xgb: error: http://h: load: a worker died"
    ]


@pytest.mark.parametrize(
    ("model", "at_s", "excused"),
    [("xgb", 59.9, True), ("xgb", 61.0, True), ("xgb", 40.0, False), ("dssm", 60.1, False)],
)
def test_a_lost_request_is_excused_only_by_a_kill_of_its_worker(
    model: str, at_s: float, excused: bool
) -> None:
    lost = SentRequest(at_s, 200.0, model, "/predictions: 500")
    seen = record(disturbances=[Disturbance(60.0, "kill", "xgb", 2.0, None)])
    seen.requests.append(lost)
    assert seen.lost() == (([lost], []) if excused else ([], [lost]))
    assert soak_report.report(seen)[1] == ([] if excused else ["/predictions: 500"])


def test_without_two_versions_there_is_nothing_to_switch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.main(["--models", "xgb", "--artifacts-dir", str(tmp_path)]) == 1
    assert "xgb has no version; run: make train MODEL=xgb" in capsys.readouterr().err
    assert soak.main(["--minutes", "0"]) == 2
