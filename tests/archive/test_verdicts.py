"""The gate's verdicts in the registry, and that a version without one does not become champion."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from archive.registry.documents import JudgedMetric, RegistryError, Verdict
from archive.registry.store import Registry
from handlers.signature import sha256
from scripts import register_model

PASSED = Verdict(
    passed=True,
    reference="v0",
    failures=[],
    metrics={"auc": JudgedMetric(0.7, 0.71, 0.01, 0.693, is_least=True)},
    data_sha256="d" * 64,
    judged_as="m",
    judged_by="me@here",
    judged_at="2026-11-27T10:00:00+00:00",
)
FAILED = replace(PASSED, passed=False, failures=["auc: expected >= 0.6930, got 0.6"])


def judge(registry: Registry, mar: Path, verdict: Verdict, report: bytes = b"<html>") -> None:
    version = mar.parent.name
    registry.record_verdict(version, verdict, {"m": sha256(mar.read_bytes())}, report)


@pytest.mark.parametrize("with_bucket", [False, True])
@pytest.mark.parametrize("judged_first", [False, True])
def test_verdict_meets_its_archive_whichever_comes_first(
    tmp_path: Path, mars: dict[str, Path], bucket: str, with_bucket: bool, judged_first: bool
) -> None:
    name = bucket if with_bucket else None
    registry = Registry(tmp_path / "registry", name)
    steps: list[Callable[[], object]] = [
        lambda: judge(registry, mars["v1"], PASSED),
        lambda: registry.register("m", "v1", mars["v1"]),
    ]
    for step in steps if judged_first else reversed(steps):
        step()
    expected = replace(PASSED, report="m/v1/report.html")
    there = Registry(tmp_path / "there" if with_bucket else registry.folder, name)
    assert there.entry("m", "v1").verdict == expected
    registry.register("m", "v2", mars["v2"])
    assert registry.entry("m", "v2").verdict is None

    judge(registry, mars["v1"], FAILED, b"<html>again")
    assert there.entry("m", "v1").verdict == replace(FAILED, report="m/v1/report.html")
    registry.prune("m", 5)
    assert (registry.folder / "m/v1/report.html").read_bytes() == b"<html>again"


def test_verdict_on_another_archive_of_the_version_does_not_count(
    registry: Registry, mars: dict[str, Path], make_mar: Callable[..., Path]
) -> None:
    judge(registry, make_mar("v1", "old/v1", "old code"), PASSED)
    registry.register("m", "v1", mars["v1"])
    assert registry.entry("m", "v1").gate == "-"


def test_old_verdicts_without_an_archive_go_with_prune(
    registry: Registry, mars: dict[str, Path]
) -> None:
    for version in ("v1", "v2"):
        judge(registry, mars[version], FAILED)
    registry.prune("m", 1)
    assert not (registry.folder / "m/v1").exists()
    assert (registry.folder / "m/v2/report.html").exists()
    registry.register("m", "v2", mars["v2"])
    assert registry.entry("m", "v2").gate == "failed"


def test_only_a_reason_or_a_former_champion_passes_without_the_gate(
    registry: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def promote(version: str, *flags: str) -> int:
        named = ["--model", "m", "--version", version, "--registry", str(registry.folder)]
        return register_model.main(["promote", *named, *flags])

    for version, mar in mars.items():
        registry.register("m", version, mar)
    judge(registry, mars["v1"], PASSED)
    judge(registry, mars["v2"], FAILED)
    assert promote("v1") == 0
    assert promote("v2") == 1
    assert (
        "m v2 failed against v0 on 2026-11-27: auc: expected >= 0.6930, got 0.6; train a better "
        'one, or give a reason: --ungated "..."'
    ) in capsys.readouterr().err
    assert promote("challenger") == 1
    assert (
        "m v4 was not judged; run: make evaluate MODEL=m VERSION=v4, or give"
        in capsys.readouterr().err
    )
    assert registry.aliases("m")["champion"] == "v1"
    assert promote("v2", "--ungated", "the data was wrong") == 0
    assert promote("v4", "--ungated", "in a hurry") == 0
    assert registry.entry("m", "v2").ungated == "the data was wrong"
    assert registry.entry("m", "champion").gate == "ungated"
    # The way back needs neither.
    registry.check_gate("m", "previous")
    judge(registry, mars["v1"], FAILED)
    assert promote("v1") == 0
    assert promote("v2") == 0
    with pytest.raises(RegistryError, match="m v3 was not judged"):
        registry.check_gate("m", "v3")


def test_table_shows_the_gate_and_show_the_whole_verdict(
    registry: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for version, mar in mars.items():
        registry.register("m", version, mar)
    judge(registry, mars["v1"], PASSED)
    judge(registry, mars["v2"], FAILED)
    registry.promote("m", "v3", "first start")
    place = ["--registry", str(registry.folder)]
    assert register_model.main(["list", *place]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert table[0] == ["model", "version", "alias", "gate", "sha256", "registered"]
    gates = [("passed" in row, "failed" in row, "ungated" in row, "-" in row) for row in table[2:6]]
    assert gates == [tuple(i == j for j in range(4)) for i in range(4)]
    assert register_model.main(["show", "--model", "m", "--version", "v2", *place]) == 0
    shown = json.loads(capsys.readouterr().out)["verdict"]
    assert shown["failures"] == FAILED.failures
    assert shown["metrics"]["auc"]["limit"] == 0.693
    assert (registry.folder / shown["report"]).read_bytes() == b"<html>"


def test_registry_of_before_the_verdicts_is_read(registry: Registry, mars: dict[str, Path]) -> None:
    registry.register("m", "v1", mars["v1"])
    path = registry.folder / "registry.json"
    document = json.loads(path.read_text())
    for added in ("verdicts", "removed"):
        del document["models"]["m"][added]
    for added in ("verdict", "ungated"):
        del document["models"]["m"]["versions"]["v1"][added]
    path.write_text(json.dumps(document))
    assert registry.entry("m", "v1").gate == "-"
    judge(registry, mars["v1"], PASSED)
    assert registry.entry("m", "v1").gate == "passed"


def test_run_is_judged_with_all_its_archives(registry: Registry, mars: dict[str, Path]) -> None:
    digests = {"m": sha256(mars["v1"].read_bytes()), "n": "0" * 64}
    registry.record_verdict("v1", PASSED, digests, b"<html>")
    registry.register("m", "v1", mars["v1"])
    assert registry.entry("m", "v1").gate == "passed"
    assert json.loads((registry.folder / "registry.json").read_text())["models"]["n"]["verdicts"]
    assert (registry.folder / "n/v1/report.html").exists()


def test_folder_that_joins_a_bucket_brings_its_verdicts(
    registry: Registry, mars: dict[str, Path], bucket: str, tmp_path: Path
) -> None:
    registry.register("m", "v1", mars["v1"])
    judge(registry, mars["v1"], PASSED)
    judge(registry, mars["v2"], FAILED)
    Registry(registry.folder, bucket).check_writable()
    there = Registry(tmp_path / "there", bucket)
    assert there.entry("m", "v1").gate == "passed"
    there.register("m", "v2", mars["v2"])
    assert there.entry("m", "v2").gate == "failed"
