"""A registry.json that is lost: nothing is overwritten, and the archives bring it back."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from archive.registry.documents import RegistryError
from archive.registry.store import Registry
from handlers.errors import ArchiveError
from handlers.signature import SIGNATURE_FILE, sha256
from scripts import register_model
from serving.testing import make_archive


@pytest.fixture
def filled(registry: Registry, mars: dict[str, Path]) -> Registry:
    """A registry with v1 to v3; v1 was replaced by v2."""
    for version in ("v1", "v2", "v3"):
        registry.register("m", version, mars[version])
    registry.promote("m", "v1")
    registry.promote("m", "v2", "because")
    return registry


def run(registry: Registry, *arguments: str) -> int:
    return register_model.main([*arguments, "--registry", str(registry.folder)])


def test_lost_document_is_refused_and_comes_back_as_it_was(
    filled: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    document = filled.folder / "registry.json"
    before = document.read_bytes()
    for content in (None, b"", b"\xff{", b'{"models": {"m": 5}}'):
        if content is None:
            document.unlink()
        else:
            document.write_bytes(content)
        for change in (
            lambda: filled.register("m", "v4", mars["v4"]),
            lambda: filled.prune("m", 1),
            lambda: filled.promote("m", "v1"),
            filled.listing,
            filled.check_writable,
        ):
            with pytest.raises(RegistryError, match=r"registry\.json is (missing|not readable)"):
                change()
        assert run(filled, "list") == 1
        fix = f"python -m scripts.register_model rebuild --registry {filled.folder}"
        assert fix in capsys.readouterr().err
        assert run(filled, "rebuild") == 0
        assert document.read_bytes() == before
        assert capsys.readouterr().out == "m v1 previous\nm v2 champion\nm v3 challenger\n"
    assert len(list(filled.folder.rglob("*.mar"))) == 3


def test_without_a_copy_the_archives_are_read_alone(
    filled: Registry, mars: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("registry.json", "registry.json.copy"):
        (filled.folder / name).unlink()
    damaged = filled.folder / "m/v1/m.mar"
    damaged.write_bytes(damaged.read_bytes()[:-50])
    moved = filled.folder / "m/v9/m.mar"
    moved.parent.mkdir()
    shutil.copyfile(mars["v4"], moved)
    assert run(filled, "rebuild") == 0
    captured = capsys.readouterr()
    assert captured.out == "m v2\nm v3 challenger\n"
    assert "m/v1/m.mar: not a readable archive" in captured.err
    assert "m/v9/m.mar: this is m v4" in captured.err
    assert moved.exists()


def test_entry_whose_archive_is_another_one_is_dropped(
    filled: Registry, make_mar: Callable[..., Path]
) -> None:
    shutil.copyfile(make_mar("v2", "other", "other code"), filled.folder / "m/v2/m.mar")
    (filled.folder / "registry.json").unlink()
    problems = filled.rebuild()
    assert [problem.partition(" sha256")[0] for problem in problems] == [
        "m v2 is registered with",
        "m v2: its archive is missing or altered",
    ]
    assert filled.aliases("m") == {"champion": "v1", "challenger": "v3"}


def test_prune_reports_a_whole_archive_without_an_entry_and_rebuild_adds_it(
    filled: Registry, mars: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    unknown = filled.folder / "m/v4/m.mar"
    unknown.parent.mkdir()
    shutil.copyfile(mars["v4"], unknown)
    (filled.folder / "m/v4/.m.mar.part").write_bytes(mars["v4"].read_bytes()[:-50])
    assert filled.prune("m", 3) == []
    assert [*unknown.parent.iterdir()] == [unknown]
    [message] = caplog.messages
    assert message.startswith(f"{unknown} has no entry and stays; to register it, run: ")
    assert filled.rebuild() == []
    assert filled.entry("m", "v4").sha256
    assert filled.aliases("m")["challenger"] == "v3"


def test_bucket_whose_document_is_lost_comes_back_as_it_was(
    tmp_path: Path, mars: dict[str, Path], bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = (Registry(tmp_path / name, bucket) for name in ("here", "there"))
    for version in ("v1", "v2"):
        here.register("m", version, mars[version])
        here.promote("m", version)
    s3 = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    before = s3.cat_file(f"{bucket}/registry.json")
    s3.rm_file(f"{bucket}/registry.json")
    for registry in (here, there):
        with pytest.raises(RegistryError, match=r"registry\.json is missing, .* --s3-bucket"):
            registry.register("m", "v3", mars["v3"])
    assert run(there, "rebuild", "--s3-bucket", bucket) == 0
    assert capsys.readouterr().out == "m v1 previous\nm v2 champion\n"
    assert s3.cat_file(f"{bucket}/registry.json") == before
    there.register("m", "v3", mars["v3"])

    (here.folder / "registry.json").unlink()
    with pytest.raises(RegistryError, match=r"registry\.json is missing"):
        here.prune("m", 1)
    with pytest.raises(RegistryError, match=f"is a copy of the bucket {bucket}"):
        Registry(here.folder).rebuild()
    assert here.rebuild() == []
    assert [entry.version for entry, _ in Registry(here.folder).listing()] == ["v1", "v2", "v3"]


def test_metrics_that_the_document_cannot_hold_are_refused(
    registry: Registry, tmp_path: Path
) -> None:
    mar = make_archive(tmp_path, "m", "#", golden="")
    for metrics in ('{"auc": NaN}', '["auc"]', '{"auc": "high"}', "", "[]"):
        text = f'{{"metrics": {metrics}}}' if metrics else "{"
        with_meta(mar, tmp_path / "meta.mar", text)
        with pytest.raises(ArchiveError, match=r"meta\.mar: expected a .* with metrics"):
            registry.register("m", "1.0", tmp_path / "meta.mar")
    assert registry.listing() == []


def with_meta(mar: Path, target: Path, text: str) -> None:
    """Copy an archive and add a meta file."""
    with zipfile.ZipFile(mar) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == SIGNATURE_FILE:
                signature = json.loads(data)
                signature["files"]["m_meta.json"] = sha256(text.encode())
                data = json.dumps(signature).encode()
            new.writestr(name, data)
        new.writestr("m_meta.json", text)


def test_copies_of_old_versions_go_from_the_store(
    filled: Registry,
    mars: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_mar: Callable[..., Path],
) -> None:
    store = tmp_path / "store"
    (store / "m").mkdir(parents=True)
    shutil.copyfile(make_mar("u2"), store / "m.mar")
    for version in ("u1", "u2", "v1", "v2", "v3", "u3"):
        shutil.copyfile(make_mar(version), store / "m" / f"{version}.mar")
    flags = ["--model", "m", "--keep", "1", "--store", str(store)]
    assert run(filled, "prune", *flags) == 0
    assert capsys.readouterr().out == f"removing {store}/m/u1.mar\n"
    kept = {path.stem for path in (store / "m").iterdir()}
    assert kept == {"u2", "v1", "v2", "v3", "u3"}
