"""Archives, read without their code."""

from __future__ import annotations

import base64
import json
import random
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from archive import package
from handlers.errors import ArchiveError, UserError
from handlers.signature import MANIFEST_FILE, SIGNATURE_FILE, sha256, verify_folder
from serving.archive_file import CONFIG_FILE, SAMPLE_FILE, ArchiveFile
from serving.testing import make_archive

HANDLER = "raise AssertionError('the code must not run')"


def test_contents_are_read_without_the_code(tmp_path: Path) -> None:
    golden = json.dumps({"rows": [{"x": 1}, {"x": 2}], "predictions": [0.1, 0.2]})
    mar = make_archive(tmp_path, "first", HANDLER, version="2", golden=golden)
    archive = ArchiveFile.read(mar)
    assert (archive.name, archive.version) == ("first", "2")
    assert archive.config["batchSize"] == 8
    assert json.loads(archive.sample_request) == {"data": [{"item_ctr": 0.1}]}
    assert archive.golden.predictions == [0.1, 0.2]
    assert archive.golden.requests[1:] == [b'{"data":[{"x":1}]}', b'{"data":[{"x":2}]}']


def test_missing_golden_rows_are_an_error_only_where_they_are_needed(tmp_path: Path) -> None:
    archive = ArchiveFile.read(make_archive(tmp_path, "first", HANDLER))
    with pytest.raises(ArchiveError, match=r"golden\.json is missing; run: make archive"):
        _ = archive.golden


def test_altered_archive_is_not_read(tmp_path: Path) -> None:
    mar = make_archive(tmp_path, "first", HANDLER)
    mar.write_bytes(mar.read_bytes().replace(b"0.1", b"0.2"))
    with pytest.raises(ArchiveError, match=r"first\.mar"):
        ArchiveFile.read(mar)


def test_archive_of_another_model_is_refused(tmp_path: Path) -> None:
    mar = make_archive(tmp_path, "first", HANDLER)
    mar = mar.rename(tmp_path / "second.mar")
    with pytest.raises(ArchiveError, match=r"second\.mar: expected second, this is first 1\.0"):
        ArchiveFile.read(mar, "second")


def rewritten(mar: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change the files of an archive, and correct their hashes."""
    with zipfile.ZipFile(mar) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with suppress(ValueError, AttributeError, TypeError, LookupError, RecursionError):
        signature = json.loads(files[SIGNATURE_FILE])
        for name in signature["files"]:
            signature["files"][name] = sha256(files[name])
        files[SIGNATURE_FILE] = json.dumps(signature).encode()
    with zipfile.ZipFile(mar, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def signature_with(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[SIGNATURE_FILE] = json.dumps(json.loads(files[SIGNATURE_FILE]) | values).encode()

    return change


def manifest_with(**values: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        manifest = json.loads(files[MANIFEST_FILE])
        manifest["model"] |= values
        files[MANIFEST_FILE] = json.dumps(manifest).encode()

    return change


def file_with(name: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[name] = content

    return change


def outside(files: dict[str, bytes]) -> None:
    files["../evil.py"] = b""
    listed = json.loads(files[SIGNATURE_FILE])["files"]
    signature_with(files=listed | {"../evil.py": sha256(b"")})(files)


def without(*names: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        listed = json.loads(files[SIGNATURE_FILE])["files"]
        signature_with(files={n: listed[n] for n in listed if n not in names})(files)
        for name in names:
            del files[name]

    return change


def without_manifest(files: dict[str, bytes]) -> None:
    del files[MANIFEST_FILE]


WRONG: list[tuple[Callable[[dict[str, bytes]], None], str]] = [
    (signature_with(files=["a"]), "signature.json: files: Input should be an object"),
    (signature_with(model_version=None), "signature.json: model_version: Input should be a valid"),
    (signature_with(model_name="../xgb"), "signature.json: model_name: String should match"),
    (signature_with(handler="/etc/x.py"), "signature.json: handler: String should match"),
    (signature_with(features=[{}]), "signature.json: features.0: Value error, expected a feature"),
    (signature_with(output={}), "signature.json: output: Value error, expected a type: number"),
    (signature_with(more=1), "signature.json: more: Unexpected keyword argument"),
    (file_with(SIGNATURE_FILE, b"[" * 10**5), "signature.json: Invalid JSON: recursion limit"),
    (file_with(SIGNATURE_FILE, b"\xff"), "signature.json: Invalid JSON"),
    (outside, r"signature.json: files.../evil.py.\[key\]: String should match pattern"),
    (manifest_with(modelFile="evil.py"), "MANIFEST.json: model.modelFile: Extra inputs are not"),
    (manifest_with(configFile="evil.yaml"), "MANIFEST.json: model.configFile: Input should be"),
    (manifest_with(handler="evil.py"), "MANIFEST.json: expected first, 1.0, first_handler.py, got"),
    (file_with(MANIFEST_FILE, b"5"), "MANIFEST.json: Input should be an object"),
    (
        file_with(SAMPLE_FILE, b'{"data": "\xe9"}'),
        "sample_request.json: Invalid JSON: inv",
    ),
    (file_with(SAMPLE_FILE, b"{}"), "sample_request.json: data: Field required"),
    (
        file_with(CONFIG_FILE, b"minWorkers: 0"),
        "minWorkers: Input should be greater",
    ),
    (
        file_with(CONFIG_FILE, b"minWorkers: 2\nmaxWorkers: 1"),
        "maxWorkers: expected at least",
    ),
    (
        file_with(CONFIG_FILE, b"minWorkers: '2'"),
        "model-config.yaml: minWorkers: Input",
    ),
    (file_with(CONFIG_FILE, b"[1]"), "model-config.yaml: Input should be a valid dictionary"),
    (file_with(CONFIG_FILE, b"a: [" * 10**4), "model-config.yaml: not readable"),
    (
        file_with("golden.json", b'{"rows": [1], "predictions": []}'),
        "expected a prediction for",
    ),
    (
        file_with("golden.json", b'{"rows": 1, "predictions": []}'),
        "golden.json: rows: Input",
    ),
    (without(SAMPLE_FILE), "sample_request.json is missing"),
    (without("first_handler.py"), "first_handler.py, the handler, is missing"),
    (without_manifest, "MANIFEST.json is missing"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_an_archive_says_is_checked_as_data(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    mar = make_archive(tmp_path, "first", HANDLER, golden='{"rows": [1], "predictions": [1]}')
    rewritten(mar, change)
    with pytest.raises(ArchiveError, match=message) as refusal:
        ArchiveFile.read(mar, "first")
    assert str(refusal.value).startswith(f"{mar}: ")
    assert str(refusal.value).endswith("; run: make archive")


def values(rng: random.Random) -> Any:
    """A value of any JSON type."""
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    choices = [None, True, -1, 0, 1e308, 10**30, "", "../x", "\ud800", [], {}, [{}], {"": 1}, deep]
    return rng.choice(choices)


def test_any_value_in_an_archive_is_refused_or_kept(tmp_path: Path) -> None:
    rng = random.Random(11)
    texts = (SIGNATURE_FILE, MANIFEST_FILE, SAMPLE_FILE, "golden.json", CONFIG_FILE)

    def change(files: dict[str, bytes]) -> None:
        name = rng.choice(texts)
        content = yaml.safe_load(files[name])
        where = content
        while isinstance(where, dict | list) and where:
            key = rng.choice([*where] if isinstance(where, dict) else range(len(where)))
            if not isinstance(where[key], dict | list) or not where[key] or rng.random() < 0.5:
                where[key] = values(rng)
                break
            where = where[key]
        files[name] = json.dumps(content).encode()

    refused = 0
    for _ in range(500):
        mar = make_archive(tmp_path, "first", HANDLER, golden='{"rows": [1], "predictions": [1]}')
        rewritten(mar, change)
        try:
            archive = ArchiveFile.read(mar, "first")
        except ArchiveError:
            refused += 1
        else:
            assert archive.version
            assert archive.golden.requests
    assert 100 < refused < 500


KEY = base64.b64encode(bytes(range(32))).decode()
PUBLIC = base64.b64encode(
    Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()
).decode()
OTHER = base64.b64encode(bytes(32)).decode()


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive that was signed with KEY."""
    monkeypatch.setenv("RECMAR_SIGNING_KEY", KEY)
    (tmp_path / "signed").mkdir()
    mar = tmp_path / "signed" / "first.mar"
    package.with_config(make_archive(tmp_path, "first", HANDLER), "minWorkers: 1\n", mar)
    monkeypatch.delenv("RECMAR_SIGNING_KEY")
    return mar


def test_signed_archive_is_read_with_and_without_its_key(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ArchiveFile.read(signed)
    monkeypatch.setenv("RECMAR_PUBLIC_KEY", f"{OTHER}, {PUBLIC}")
    assert ArchiveFile.read(signed) == plain
    with zipfile.ZipFile(signed) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert verify_folder(tmp_path / "unpacked").model_name == "first"


def test_archive_that_is_not_signed_by_a_trusted_key_is_refused(
    signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECMAR_PUBLIC_KEY", PUBLIC)
    with pytest.raises(ArchiveError, match=r"it is not signed; sign it: RECMAR_SIGNING_KEY=\.\.\."):
        ArchiveFile.read(make_archive(tmp_path, "first", HANDLER))
    rewritten(signed, signature_with(model_version="2"))
    with pytest.raises(ArchiveError, match="was not made with the key of RECMAR_PUBLIC_KEY"):
        ArchiveFile.read(signed)
    rewritten(signed, file_with("signature.ed25519", b"not base64"))
    with pytest.raises(ArchiveError, match="was not made with the key of RECMAR_PUBLIC_KEY"):
        ArchiveFile.read(signed)


@pytest.mark.parametrize("key", ["secret", "c2hvcnQ=", KEY[:-4]])
def test_unreadable_key_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    mar = make_archive(tmp_path, "first", HANDLER)
    monkeypatch.setenv("RECMAR_PUBLIC_KEY", key)
    with pytest.raises(UserError, match="RECMAR_PUBLIC_KEY: expected the base64 of 32 b") as error:
        ArchiveFile.read(mar)
    assert key not in str(error.value)
    monkeypatch.setenv("RECMAR_SIGNING_KEY", key)
    with pytest.raises(UserError, match="RECMAR_SIGNING_KEY: expected the base64 of 32") as error:
        package.with_config(mar, "minWorkers: 1\n", tmp_path / "copy.mar")
    assert key not in str(error.value)
