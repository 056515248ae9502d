"""The short form of ``make chaos``."""

from __future__ import annotations

import pytest

from bench import chaos

FAULTS = "a worker,the sidecar,reload:,fuzzed,make archive"


def test_faults_are_survived(capsys: pytest.CaptureFixture[str]) -> None:
    status = chaos.main(["--times", "1", "--kills", "1", "--fuzzed", "300", "--only", FAULTS])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    rows = [line.split() for line in printed.out.splitlines() if line.strip()][2:]
    assert len(rows) == 8
    assert [row[-4:-2] for row in rows] == [["1", "1"]] * 8


def test_a_fault_that_is_not_survived_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        chaos.Outcome("fine", 3, 3, 0, 1.25),
        chaos.Outcome("broken", 3, 2, None, 0.5, "left behind: x"),
    ]
    monkeypatch.setattr(chaos, "outcomes", lambda _: iter(found))
    assert chaos.main([]) == 1
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines() if line.strip()][2:]
    assert rows == [["fine", "3", "3", "0", "1.2"], ["broken", "3", "2", "-", "0.5"]]
    assert "error: broken: left behind: x" in printed.err
