"""The self-description of an archive, and the checks of an archive against it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from handlers.errors import ArchiveError

SIGNATURE_FILE = "signature.json"
GOLDEN_FILE = "golden.json"
GOLDEN_TOLERANCE = 1e-5
# Imported by every handler.
SHARED_LIBRARIES = ("torch", "numpy", "msgspec", "orjson", "torchserve")

MANIFEST_FILE = "MAR-INF/MANIFEST.json"
SIGNED_FILE = "signature.ed25519"  # the Ed25519 signature of the two; optional
UNLISTED = (SIGNATURE_FILE, MANIFEST_FILE, SIGNED_FILE)  # cannot have a hash in the first


@dataclass(frozen=True)
class Signature:
    """The self-description of an archive, ``signature.json``.

    Attributes:
        model_name: Name of the model in URLs.
        model_version: Version in URLs.
        handler: File that TorchServe imports.
        features: Name, kind, default and training range of each input, in order.
        output: Description of one prediction.
        libraries: Versions of Python and libraries that the archive was built with.
        files: sha256 of every other file of the archive, by path.
        space_id: Identifier of an embedding model's vector space; only vectors of the same space
            can be compared.
        collection: Collection of an index that holds the items of that space.
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
        """Return the content of ``signature.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Signature:
        """Parse the content of ``signature.json``.

        Raises:
            ArchiveError: If the text is not a signature.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{SIGNATURE_FILE} is not readable: {error}") from error


def library_versions(own: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the libraries that an archive's predictions depend on.

    Args:
        own: Distributions that the model needs in addition to those of every handler.
    """
    names = sorted({*SHARED_LIBRARIES, *own})
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 digest."""
    return hashlib.sha256(data).hexdigest()


def verify_folder(folder: Path) -> Signature:
    """Check an unpacked archive against its signature.

    Raises:
        ArchiveError: If a file is missing, altered or not listed; names the first one.
    """
    paths = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    names = {p.relative_to(folder).as_posix() for p in paths}
    try:
        if SIGNATURE_FILE not in names:
            raise ArchiveError(f"{SIGNATURE_FILE} is missing")
        signature = Signature.from_json((folder / SIGNATURE_FILE).read_bytes())
        verify_files(signature, names, lambda name: sha256((folder / name).read_bytes()))
        if MANIFEST_FILE in names:
            check_manifest(signature, (folder / MANIFEST_FILE).read_bytes())
    except ArchiveError as error:
        raise ArchiveError(f"{folder}: {error}; run: make archive") from error
    return signature


def verify_files(
    signature: Signature, names: Collection[str], sha256_of: Callable[[str], str]
) -> None:
    """Check the files of an archive against its signature.

    Raises:
        ArchiveError: If a file is missing, altered or not listed; names the first one.
    """
    for name, expected in sorted(signature.files.items()):
        if name not in names:
            raise ArchiveError(f"{name} is missing")
        if (got := sha256_of(name)) != expected:
            raise ArchiveError(
                f"{name} was altered: expected sha256 {expected[:12]}..., got {got[:12]}..."
            )
    for name in sorted(set(names) - signature.files.keys()):
        if name not in UNLISTED:
            raise ArchiveError(f"{name} is not in {SIGNATURE_FILE}")


def check_manifest(signature: Signature, text: bytes) -> None:
    """Check the manifest, which names the code to run.

    The signature has no hash of it, because the archiver writes it after the signature.

    Raises:
        ArchiveError: If it is not readable, or names something else than the signature.
    """
    try:
        model = json.loads(text)["model"]
        got = [str(model[key]) for key in ("modelName", "modelVersion", "handler")]
    except (ValueError, LookupError, TypeError) as error:
        raise ArchiveError(f"{MANIFEST_FILE} is not readable: {error!r}") from error
    expected = [signature.model_name, signature.model_version, signature.handler]
    if got != expected:
        raise ArchiveError(f"{MANIFEST_FILE}: expected {', '.join(expected)}, got {', '.join(got)}")


def first_difference(
    rows: Sequence[Mapping[str, Any]], expected: Sequence[Any], got: Sequence[Any]
) -> str | None:
    """Compare golden predictions with replayed ones.

    Numbers may differ by 1e-5: absolute up to 1, relative above.

    Returns:
        A message that names the first row that differs, or None.
    """
    if len(expected) != len(got):
        return f"expected {len(expected)} predictions, got {len(got)}"
    for i, (row, want, actual) in enumerate(zip(rows, expected, got, strict=True)):
        if not close(want, actual):
            return (
                f"{GOLDEN_FILE}: row {i}: training computed {want}, this handler computes {actual} "
                f"for {json.dumps(row)}"
            )
    return None


def close(expected: Any, got: Any) -> bool:
    """Whether two predictions are the same but for 1e-5, relative above 1."""
    if isinstance(expected, dict):
        return (
            isinstance(got, dict)
            and expected.keys() == got.keys()
            and all(close(expected[key], got[key]) for key in expected)
        )
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and len(expected) == len(got)
            and all(close(e, g) for e, g in zip(expected, got, strict=True))
        )
    if isinstance(expected, int | float) and isinstance(got, int | float):
        return abs(expected - got) <= GOLDEN_TOLERANCE * max(1.0, abs(expected))
    return bool(expected == got)
