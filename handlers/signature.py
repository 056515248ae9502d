"""What an archive says of itself, and the checks that make it keep its word."""

from __future__ import annotations

import hashlib
import json
import platform
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from handlers.errors import ArchiveError

SIGNATURE_FILE = "signature.json"
GOLDEN_FILE = "golden.json"
GOLDEN_TOLERANCE = 1e-5
# What every handler imports.
SHARED_LIBRARIES = ("torch", "numpy", "msgspec", "orjson", "torchserve")

MANIFEST_FILE = "MAR-INF/MANIFEST.json"


@dataclass(frozen=True)
class Signature:
    """The self-description of an archive, ``signature.json``.

    Attributes:
        model_name: As in the URL.
        model_version: As in the URL.
        handler: The file that TorchServe imports.
        features: Name, kind, default and training range of each input, in order.
        output: What one row of ``predictions`` is.
        libraries: Versions that the archive was made with.
        files: sha256 of every other file of the archive, by path.
        space_id: Of an embedding model: vectors of the same space can be compared.
        collection: Of an embedding model: where the items of its space are looked up.
    """

    model_name: str
    model_version: str
    handler: str
    features: list[dict[str, Any]]
    output: dict[str, Any]
    libraries: dict[str, str]
    files: dict[str, str]
    space_id: str | None = None
    collection: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As written to the archive."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Signature:
        """Read it back.

        Raises:
            ArchiveError: If the text is not a signature.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{SIGNATURE_FILE} is not readable: {error}") from error


def library_versions(own: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python and of the libraries that decide what an archive computes.

    Args:
        own: Distributions that the model needs beside those of every handler.
    """
    names = sorted({*SHARED_LIBRARIES, *own})
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def verify_folder(folder: Path) -> Signature:
    """Check an unpacked archive against its signature.

    Raises:
        ArchiveError: Naming the first file that is missing, altered or not listed.
    """
    paths = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    names = [p.relative_to(folder).as_posix() for p in paths]
    return _verify(str(folder), names, lambda name: (folder / name).read_bytes())


def verify_archive(mar: Path) -> Signature:
    """Check a ``.mar`` against its signature, before any of its code is loaded.

    Raises:
        ArchiveError: Naming the first file that is missing, altered or not listed.
    """
    try:
        with zipfile.ZipFile(mar) as archive:
            return _verify(str(mar), archive.namelist(), archive.read)
    except (zipfile.BadZipFile, OSError) as error:
        raise ArchiveError(f"{mar}: not a readable archive: {error}; run: make archive") from error


def _verify(where: str, names: Iterable[str], read: Callable[[str], bytes]) -> Signature:
    present = set(names)
    if SIGNATURE_FILE not in present:
        raise ArchiveError(f"{where}: {SIGNATURE_FILE} is missing; run: make archive")
    signature = Signature.from_json(read(SIGNATURE_FILE))
    for name, expected in sorted(signature.files.items()):
        if name not in present:
            raise ArchiveError(f"{where}: {name} is missing; run: make archive")
        if (got := sha256(read(name))) != expected:
            raise ArchiveError(
                f"{where}: {name} was altered: expected sha256 {expected[:12]}..., "
                f"got {got[:12]}...; run: make archive"
            )
    if MANIFEST_FILE in present:
        _check_manifest(where, signature, read(MANIFEST_FILE))
    for name in sorted(present - signature.files.keys()):
        if name not in (SIGNATURE_FILE, MANIFEST_FILE):
            raise ArchiveError(f"{where}: {name} is not in {SIGNATURE_FILE}; run: make archive")
    return signature


def _check_manifest(where: str, signature: Signature, text: bytes) -> None:
    """The archiver writes the manifest after the signature, and it names the code to run."""
    try:
        model = json.loads(text)["model"]
        got = [str(model[key]) for key in ("modelName", "modelVersion", "handler")]
    except (ValueError, LookupError, TypeError) as error:
        raise ArchiveError(f"{where}: {MANIFEST_FILE} is not readable: {error!r}") from error
    expected = [signature.model_name, signature.model_version, signature.handler]
    if got != expected:
        raise ArchiveError(
            f"{where}: {MANIFEST_FILE}: expected {', '.join(expected)}, got {', '.join(got)}; "
            "run: make archive"
        )


def first_difference(
    rows: Sequence[Mapping[str, Any]], expected: Sequence[Any], got: Sequence[Any]
) -> str | None:
    """Compare golden predictions with replayed ones.

    Numbers may differ by 1e-5, relative above 1.

    Returns:
        A message that names the row, or None when all agree.
    """
    if len(expected) != len(got):
        return f"expected {len(expected)} predictions, got {len(got)}"
    for i, (row, want, have) in enumerate(zip(rows, expected, got, strict=True)):
        if not _close(want, have):
            return (
                f"{GOLDEN_FILE}: row {i}: training computed {want}, this handler computes {have} "
                f"for {json.dumps(row)}"
            )
    return None


def _close(want: Any, have: Any) -> bool:
    if isinstance(want, dict):
        return (
            isinstance(have, dict)
            and want.keys() == have.keys()
            and all(_close(want[key], have[key]) for key in want)
        )
    if isinstance(want, list):
        return (
            isinstance(have, list)
            and len(want) == len(have)
            and all(_close(w, h) for w, h in zip(want, have, strict=True))
        )
    if isinstance(want, int | float) and isinstance(have, int | float):
        return abs(want - have) <= GOLDEN_TOLERANCE * max(1.0, abs(want))
    return bool(want == have)
