"""The registry: entries and aliases; and that kills, other writers and bad copies do no harm."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import s3fs

from archive import catalog, package
from archive import files as archive_files
from archive.gate.verdict import archives_of_run
from archive.registry import bucket as bucket_module
from archive.registry import contents, documents, folder, rebuild, storage
from archive.registry import store as store_module
from archive.registry.bucket import Bucket
from archive.registry.documents import RegistryError
from archive.registry.store import Registry
from handlers.errors import ArchiveError
from handlers.signature import sha256
from scripts import register_model
from serving.rollout import changing
from tests.examples import Example, module
from training import artifacts

DOCUMENTS = ("registry.json", "registry.json.copy")

# For processes to kill: a fork of one that has imported this module starts fast.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.archive.test_registry"])
MODULES = (
    archive_files,
    bucket_module,
    contents,
    documents,
    folder,
    rebuild,
    storage,
    store_module,
)
# A process is killed while it runs one of these.
SOURCES = {m.__file__ for m in MODULES}


def versions(registry: Registry) -> list[str]:
    return [entry.version for entry, _ in registry.listing()]


def names(registry: Registry) -> list[tuple[str, list[str]]]:
    return [(entry.version, aliases) for entry, aliases in registry.listing()]


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def run(registry: Path, *arguments: str) -> int:
    return register_model.main([*arguments, "--registry", str(registry)])


def example_of(model: str) -> Example:
    found: Example = module(model).EXAMPLES[0]
    return found


def test_entry_records_the_model_the_data_and_who_registered_it(
    tmp_path: Path, artifact_folder: Callable[[Example], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact_folder(example_of("xgb"))
    registered = ["--model", "xgb", "--version", folder.name, "--model-dir", str(folder.parents[1])]
    capsys.readouterr()
    assert run(tmp_path, *registered) == 0
    first = capsys.readouterr().out
    assert run(tmp_path, *registered) == 0  # packaging again gives the same bytes
    assert capsys.readouterr().out == first

    entry = Registry(tmp_path).entry("xgb", "challenger")
    meta = artifacts.read_meta(folder)
    assert entry.version == folder.name
    assert entry.metrics == meta["metrics"]
    assert (entry.data_sha256, entry.git_sha) == (meta["data_sha256"], meta["git_sha"])
    assert entry.signature["features"][0]["name"] == meta["feature_columns"][0]
    assert entry.sha256 == sha256((tmp_path / entry.path).read_bytes())
    assert entry.path == f"xgb/{folder.name}/xgb.mar"
    assert "@" in entry.registered_by
    assert run(tmp_path, "show", "--model", "xgb", "--version", "challenger") == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == entry.sha256


def test_training_run_is_registered_with_all_its_archives(
    tmp_path: Path, artifact_folder: Callable[[Example], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = artifact_folder(example_of("two_tower"))
    capsys.readouterr()
    # Other tests may have trained a newer version into the same folder.
    flags = ["--version", folder.name, "--model-dir", str(folder.parents[1])]
    assert run(tmp_path, "--model", "two_tower", *flags) == 0
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    listed = Registry(tmp_path).listing()
    assert (
        printed == [entry.model for entry, _ in listed] == ["item_tower", "two_tower", "user_tower"]
    )
    assert len({entry.signature["space_id"] for entry, _ in listed}) == 1
    # The gate, which comes before, knows the same archives.
    judged = next(entry for entry, _ in listed if entry.model == "two_tower")
    places = package.Config(store=tmp_path / "scratch", artifacts_dir=folder.parents[1])
    empty, run_of = Registry(tmp_path / "empty"), catalog.get("two_tower")
    found = archives_of_run(empty, run_of, folder.name, judged.sha256, places)
    assert found == {entry.model: entry.sha256 for entry, _ in listed}
    assert run(tmp_path, "list") == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_aliases_follow_registration_promotion_and_rollback(
    registry: Registry, mars: dict[str, Path]
) -> None:
    registry.register("m", "v1", mars["v1"])
    assert registry.aliases("m") == {"challenger": "v1"}
    assert registry.promote("m", "challenger") == "v1"
    assert registry.aliases("m") == {"champion": "v1"}
    registry.register("m", "v2", mars["v2"])
    registry.register("m", "v3", mars["v3"])
    assert registry.aliases("m") == {"champion": "v1", "challenger": "v3"}
    registry.promote("m", "v2")
    registry.promote("m", "v3")
    registry.promote("m", "v3")
    assert registry.aliases("m") == {"champion": "v3", "previous": "v2"}
    assert registry.rollback("m") == "v2"
    # A version that was rolled back is no challenger, so that nothing promotes it again.
    assert registry.aliases("m") == {"champion": "v2", "previous": "v1"}
    registry.register("m", "v3", mars["v3"])
    assert registry.aliases("m") == {"champion": "v2", "previous": "v1"}
    assert registry.rollback("m") == "v1"
    with pytest.raises(RegistryError, match="m has no previous champion; it has v1, v2, v3, champ"):
        registry.rollback("m")


def test_message_about_a_missing_version_lists_the_known_ones(
    registry: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RegistryError, match=r"no version v1 of m; it has none; run: make register"):
        registry.entry("m", "v1")
    registry.register("m", "v1", mars["v1"])
    with pytest.raises(RegistryError, match="no version v9 of m; it has v1, challenger v1"):
        registry.fetch("m", "v9", registry.folder)
    with pytest.raises(RegistryError, match="m has no champion; it has v1"):
        registry.entry("m", "champion")
    with pytest.raises(RegistryError, match="expected m v2, got m v1"):
        registry.register("m", "v2", mars["v1"])
    with pytest.raises(RegistryError, match="champion is an alias"):
        registry.register("m", "champion", mars["v1"])
    assert run(registry.folder, "--model", "deepfn") == 1
    assert "no model 'deepfn'; there are deepfm" in capsys.readouterr().err
    assert run(registry.folder / "none", "list") == 1
    assert "none has no models; run: make register" in capsys.readouterr().err


def test_version_never_becomes_another_archive(
    registry: Registry, mars: dict[str, Path], tmp_path: Path, make_mar: Callable[..., Path]
) -> None:
    entry = registry.register("m", "v1", mars["v1"])
    with pytest.raises(RegistryError, match=r"m v1 is registered with sha256 \w{12}\.\.\., this"):
        registry.register("m", "v1", make_mar("v1", "other", "other code"))
    assert sha256(registry.fetch("m", "v1", tmp_path / "store").read_bytes()) == entry.sha256


def test_damaged_archive_is_neither_registered_nor_fetched(
    registry: Registry, mars: dict[str, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.mar"
    cut.write_bytes(mars["v1"].read_bytes()[:-50])
    with pytest.raises(ArchiveError, match="not a readable archive"):
        registry.register("m", "v1", cut)
    entry = registry.register("m", "v1", mars["v1"])
    stored = registry.folder / entry.path
    stored.write_bytes(cut.read_bytes())
    store = tmp_path / "store"
    with pytest.raises(RegistryError, match=r"m/v1/m\.mar was altered: expected sha256"):
        registry.fetch("m", "v1", store)
    assert files(store) == set()
    registry.register("m", "v1", mars["v1"])  # repairs it
    assert registry.fetch("m", "v1", store).read_bytes() == mars["v1"].read_bytes()


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 2}', '{"models": {"m": 5}}'])
def test_unreadable_registry_is_reported_and_left_unchanged(
    registry: Registry, mars: dict[str, Path], text: str
) -> None:
    registry.folder.mkdir()
    path = registry.folder / "registry.json"
    path.write_text(text)
    with pytest.raises(RegistryError, match=r"registry\.json is not readable: "):
        registry.register("m", "v1", mars["v1"])
    assert path.read_text() == text


def test_pruning_keeps_every_version_with_an_alias(
    registry: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for version, mar in mars.items():
        registry.register("m", version, mar)
    registry.promote("m", "v3")
    registry.promote("m", "v1")
    assert [entry.version for entry in registry.prune("m", 0)] == ["v2"]
    assert versions(registry) == ["v1", "v3", "v4"]
    assert files(registry.folder / "m") == {"v1/m.mar", "v3/m.mar", "v4/m.mar"}
    assert registry.aliases("m") == {"champion": "v1", "previous": "v3", "challenger": "v4"}
    assert registry.prune("m", 3) == []
    assert run(registry.folder, "prune", "--model", "m", "--keep", "-1") == 1
    assert "--keep -1: expected 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("with_bucket", [False, True])
@pytest.mark.parametrize("model", ["", ".", "..", "registry.json", "n"])
def test_prune_of_an_unknown_model_removes_nothing(
    tmp_path: Path, mars: dict[str, Path], bucket: str, model: str, with_bucket: bool
) -> None:
    registry = Registry(tmp_path / "registry", bucket if with_bucket else None)
    registry.register("m", "v1", mars["v1"])
    before = files(tmp_path), bucket_files(bucket)
    with pytest.raises(RegistryError, match=r"the registry has no model .*; it has m$"):
        registry.prune(model, 1)
    assert (files(tmp_path), bucket_files(bucket)) == before


@pytest.mark.parametrize("promoted_meanwhile", [False, True])
def test_rollback_that_is_written_twice_goes_back_one_version(
    tmp_path: Path,
    mars: dict[str, Path],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    promoted_meanwhile: bool,
) -> None:
    registry = Registry(tmp_path / "here", bucket)
    for version in ("v1", "v2", "v3", "v4"):
        registry.register("m", version, mars[version])
        if version != "v4":
            registry.promote("m", version)
    write = Bucket.write

    def lose_the_answer(self: Bucket, document: Any, etag: str | None) -> bool:
        monkeypatch.setattr(Bucket, "write", write)
        if promoted_meanwhile:
            Registry(tmp_path / "there", bucket).promote("m", "v4")
        else:
            assert write(self, document, etag)
        return False

    monkeypatch.setattr(Bucket, "write", lose_the_answer)
    if promoted_meanwhile:
        with pytest.raises(RegistryError, match="v4 was promoted just now"):
            registry.rollback("m")
    else:
        assert registry.rollback("m") == "v2"
    champion = "v4" if promoted_meanwhile else "v2"
    assert registry.aliases("m")["champion"] == champion


def test_pull_does_not_touch_a_store_that_a_deploy_is_changing(
    tmp_path: Path, registry: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register("m", "v1", mars["v1"])
    registry.promote("m", "v1")
    store = tmp_path / "store"
    store.mkdir()
    with changing(store):
        assert run(registry.folder, "pull", "--store", str(store)) == 1
    assert "another deploy or reload is under way" in capsys.readouterr().err
    assert list(store.iterdir()) == []
    assert run(registry.folder, "pull", "--store", str(store)) == 0


def test_pull_refuses_an_archive_that_is_not_signed(
    tmp_path: Path,
    registry: Registry,
    mars: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.register("m", "v1", mars["v1"])
    registry.promote("m", "v1")
    monkeypatch.setenv("RECMAR_PUBLIC_KEY", base64.b64encode(bytes(32)).decode())
    assert run(registry.folder, "pull", "--store", str(tmp_path / "store")) == 1
    assert "it is not signed" in capsys.readouterr().err
    assert files(tmp_path / "store") == set()


def perform(folder: Path, action: str, mar: Path, bucket: str | None = None) -> None:
    """Change a registry as a command does."""
    registry = Registry(folder, bucket)
    if action == "register":
        registry.register("m", mar.parent.name, mar)
    elif action == "promote":
        registry.promote("m", "v2")
    else:
        registry.prune("m", 0)


def start(
    *arguments: Any, die_at: int = 0, events: tuple[str, ...] = ("line",), of: Any = None
) -> BaseProcess:
    """Start ``perform`` in a process that kills itself.

    Args:
        arguments: Arguments of ``perform``.
        die_at: Number of the event in the registry's code to die at; 0 for none.
        events: Events that count, as ``sys.settrace`` names them.
        of: Functions whose events count, by name; all by default.
    """
    process = processes.Process(
        target=_perform, args=(dict(os.environ), die_at, events, of, arguments)
    )
    process.start()
    return process


def _perform(
    env: dict[str, str], die_at: int, events: tuple[str, ...], of: Any, arguments: Any
) -> None:
    seen = 0

    def watch(frame: FrameType, event: str, _: object) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in SOURCES:
            return None
        if event in events and (of is None or frame.f_code.co_name in of):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return watch

    os.environ.update(env)
    if die_at:
        sys.settrace(watch)
    perform(*arguments)


def end(process: BaseProcess) -> bool:
    """Wait for a process; returns False if it was killed."""
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("action", ["register", "promote", "prune"])
def test_kill_at_any_line_leaves_a_registry_that_the_next_run_completes(
    tmp_path: Path, mars: dict[str, Path], action: str
) -> None:
    before = Registry(tmp_path / "before")
    for version in ("v1", "v2"):
        before.register("m", version, mars[version])
    if action == "prune":
        before.register("m", "v3", mars["v3"])
    before.promote("m", "v1")
    mar = mars["v4"]
    after = tmp_path / "after"
    shutil.copytree(before.folder, after)
    perform(after, action, mar)
    allowed = [names(before), names(Registry(after))]

    folder, line = tmp_path / "killed", 1
    seen = []
    shutil.copytree(before.folder, folder)
    while not end(start(folder, action, mar, die_at=line)):
        registry = Registry(folder)
        seen.append(names(registry))
        assert seen[-1] in allowed
        for entry, _ in registry.listing():
            assert sha256((folder / entry.path).read_bytes()) == entry.sha256
        perform(folder, action, mar)
        if action == "register":
            registry.prune("m", 9)
        assert files(folder) == files(after)
        assert names(registry) == allowed[1]
        shutil.rmtree(folder)
        shutil.copytree(before.folder, folder)
        line += 1
    assert [seen[0], seen[-1]] == allowed


def test_leftover_of_a_killed_copy_is_not_an_archive(
    registry: Registry, mars: dict[str, Path]
) -> None:
    part = registry.folder / "m/v1/.m.mar.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half of an archive")
    registry.register("m", "v1", mars["v1"])
    part.with_name("m.mar.old").touch()
    registry.prune("m", 1)
    assert files(registry.folder) == {".lock", *DOCUMENTS, "m/v1/m.mar"}


def test_parallel_writers_lose_nothing(registry: Registry, make_mar: Callable[..., Path]) -> None:
    names = [f"p{i}" for i in range(8)]
    mars = [make_mar(name) for name in names]
    writers = [start(registry.folder, "register", mar) for mar in mars]
    assert [end(writer) for writer in writers] == [True] * 8
    assert sorted(versions(registry)) == names


def bucket_files(bucket: str) -> dict[str, bytes]:
    s3 = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    return {p.removeprefix(f"{bucket}/"): s3.cat_file(p) for p in s3.find(bucket)}


def test_bucket_has_the_layout_of_the_folder_and_serves_other_machines(
    tmp_path: Path, mars: dict[str, Path], bucket: str
) -> None:
    here, there = Registry(tmp_path / "here", bucket), Registry(tmp_path / "there", bucket)
    here.register("m", "v1", mars["v1"])
    here.promote("m", "v1")
    assert bucket_files(bucket) == {
        path: (here.folder / path).read_bytes() for path in (*DOCUMENTS, "m/v1/m.mar")
    }
    assert there.fetch("m", "champion", tmp_path / "store").read_bytes() == mars["v1"].read_bytes()
    assert there.register("m", "v1", mars["v1"]) == here.entry("m", "v1")
    there.register("m", "v2", mars["v2"])
    assert versions(here) == ["v1", "v2"]
    assert versions(Registry(here.folder)) == ["v1"]  # the folder's copy, as of its last change
    assert [entry.version for entry in there.prune("m", 0)] == []
    there.promote("m", "v2")
    there.register("m", "v3", mars["v3"])
    there.promote("m", "v3")
    assert [entry.version for entry in here.prune("m", 0)] == ["v1"]
    assert set(bucket_files(bucket)) == {*DOCUMENTS, "m/v2/m.mar", "m/v3/m.mar"}


def test_bucket_keeps_what_several_machines_write_at_the_same_time(
    tmp_path: Path, bucket: str, make_mar: Callable[..., Path]
) -> None:
    names = [f"p{i}" for i in range(6)]
    mars = [make_mar(name) for name in names]
    place = f"{bucket}/team"
    writers = [start(tmp_path / f"of-{mar.parent.name}", "register", mar, place) for mar in mars]
    assert [end(writer) for writer in writers] == [True] * 6
    assert sorted(versions(Registry(tmp_path / "new", f"s3://{bucket}/team/"))) == names


def test_folder_that_joins_a_bucket_brings_its_versions(
    tmp_path: Path, mars: dict[str, Path], bucket: str
) -> None:
    alone, shared = Registry(tmp_path / "alone"), Registry(tmp_path / "shared", bucket)
    shared.register("m", "v1", mars["v1"])
    shared.promote("m", "v1")
    alone.register("m", "v2", mars["v2"])
    alone.promote("m", "v2")
    joined = Registry(alone.folder, bucket)
    joined.register("m", "v3", mars["v3"])
    assert versions(shared) == versions(joined) == ["v1", "v2", "v3"]
    assert shared.aliases("m") == {"champion": "v1", "challenger": "v3"}
    assert joined.fetch("m", "v1", tmp_path / "store").read_bytes() == mars["v1"].read_bytes()
    with pytest.raises(RegistryError, match=f"is a copy of the bucket {bucket}; add --s3-bucket"):
        alone.promote("m", "v2")
    with pytest.raises(RegistryError, match="is a copy of the bucket"):
        Registry(alone.folder, "another").promote("m", "v2")


@pytest.mark.slow
def test_kill_at_any_request_leaves_a_bucket_that_the_next_run_completes(
    tmp_path: Path, mars: dict[str, Path], bucket: str
) -> None:
    methods = [name for name in vars(Bucket) if not name.startswith("_")]
    states = []
    point = 1
    while True:
        place, folder = f"{bucket}/{point}", tmp_path / f"point-{point}"
        Registry(folder, place).register("m", "v1", mars["v1"])
        arguments = (folder, "register", mars["v2"], place)
        if end(start(*arguments, die_at=point, events=("call", "return"), of=methods)):
            break
        registry = Registry(folder, place)
        states.append(versions(registry))
        for version in states[-1]:
            registry.fetch("m", version, tmp_path / "store")
        perform(folder, "register", mars["v2"], place)
        assert versions(registry) == versions(Registry(folder)) == ["v1", "v2"]
        point += 1
    assert states[0] == ["v1"]
    assert states[-1] == ["v1", "v2"]


def test_upload_that_arrives_altered_is_not_registered(
    tmp_path: Path, mars: dict[str, Path], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = s3fs.S3FileSystem._put_file

    async def put_file(self: Any, source: str, target: str, **kwargs: Any) -> None:
        await original(self, str(mars["v2"]), target, **kwargs)

    with monkeypatch.context() as fault:
        fault.setattr(s3fs.S3FileSystem, "_put_file", put_file)
        registry = Registry(tmp_path / "registry", bucket)
        with pytest.raises(RegistryError, match=r"m/v1/m\.mar: expected sha256 \w{12}\.\.\., got"):
            registry.register("m", "v1", mars["v1"])
    assert set(bucket_files(bucket)) == {*DOCUMENTS}
    assert versions(registry) == []
    Registry(tmp_path / "registry", bucket).register("m", "v1", mars["v1"])


def test_bucket_never_replaces_an_archive(
    tmp_path: Path, mars: dict[str, Path], bucket: str, make_mar: Callable[..., Path]
) -> None:
    other = make_mar("v1", "other", "other code")
    registry = Registry(tmp_path / "registry", bucket)
    registry.check_writable()
    s3fs.S3FileSystem(skip_instance_cache=True).put_file(str(other), f"{bucket}/m/v1/m.mar")
    with pytest.raises(RegistryError, match="another archive has this version"):
        registry.register("m", "v1", mars["v1"])
    assert bucket_files(bucket)["m/v1/m.mar"] == other.read_bytes()


def test_prune_of_a_bucket_removes_old_broken_files_and_reports_whole_archives(
    tmp_path: Path,
    mars: dict[str, Path],
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = Registry(tmp_path / "registry", bucket)
    registry.register("m", "v1", mars["v1"])
    s3 = s3fs.S3FileSystem(skip_instance_cache=True)
    s3.put_file(str(mars["v2"]), f"{bucket}/m/v2/m.mar")
    s3.pipe_file(f"{bucket}/m/v3/m.mar", mars["v3"].read_bytes()[:-50])
    registry.prune("m", 5)
    assert "m/v3/m.mar" in bucket_files(bucket)  # another machine may be about to replace it
    assert caplog.messages == []
    monkeypatch.setattr(bucket_module, "LEFTOVER_AGE", -bucket_module.LEFTOVER_AGE)
    registry.prune("m", 5)
    assert set(bucket_files(bucket)) == {*DOCUMENTS, "m/v1/m.mar", "m/v2/m.mar"}
    [message] = caplog.messages
    assert message.startswith(f"bucket {bucket}: m/v2/m.mar has no entry and stays; ")


def test_bucket_that_cannot_be_used_is_reported_without_secrets(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "list", "--s3-bucket", "no-such-bucket") == 1
    assert "error: bucket no-such-bucket: " in capsys.readouterr().err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert run(tmp_path, "list", "--s3-bucket", bucket) == 1
    message = capsys.readouterr().err
    assert f"error: bucket {bucket}: " in message
    assert "test-secret" not in message
