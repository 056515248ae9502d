"""Sign archives, and check who signed one (Ed25519, RFC 8032).

Hashes say that an archive is whole; a signature says that it comes from whoever holds the key.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from handlers.errors import ArchiveError, UserError

SIGNING_KEY, PUBLIC_KEY = "RECMAR_SIGNING_KEY", "RECMAR_PUBLIC_KEY"
_KEY_BYTES = 32
_PURPOSE = b"recmar archive"


def sign(signature: bytes, manifest: bytes, env: Mapping[str, str]) -> bytes | None:
    """Sign an archive.

    Args:
        signature: Its ``signature.json``, which holds the hashes of all other files.
        manifest: Its ``MAR-INF/MANIFEST.json``.
        env: Variables; ``RECMAR_SIGNING_KEY`` is the base64 of a private key's 32 bytes.

    Returns:
        The content of ``signature.ed25519``, in base64; None without a key.

    Raises:
        UserError: If the key is not readable.
    """
    if not env.get(SIGNING_KEY):
        return None
    key = Ed25519PrivateKey.from_private_bytes(_key(SIGNING_KEY, env[SIGNING_KEY]))
    return base64.b64encode(key.sign(_message(signature, manifest)))


def check(signature: bytes, manifest: bytes, signed: bytes | None, env: Mapping[str, str]) -> None:
    """Check that an archive was signed with one of the keys that are trusted, if there are any.

    Args:
        signature: Its ``signature.json``.
        manifest: Its ``MAR-INF/MANIFEST.json``.
        signed: Its ``signature.ed25519``; None if it has none.
        env: Variables; ``RECMAR_PUBLIC_KEY`` is the base64 of a public key's 32 bytes, or several
            of them separated by commas.

    Raises:
        ArchiveError: If it is not signed, or by someone else.
        UserError: If a key is not readable.
    """
    keys = [_key(PUBLIC_KEY, text) for text in env.get(PUBLIC_KEY, "").split(",") if text.strip()]
    if not keys:
        return
    if signed is None:
        raise ArchiveError(f"it is not signed; sign it: {SIGNING_KEY}=... make archive")
    message = _message(signature, manifest)
    if not any(_verifies(key, signed, message) for key in keys):
        raise ArchiveError(f"its signature was not made with the key of {PUBLIC_KEY}")


def _verifies(key: bytes, signed: bytes, message: bytes) -> bool:
    try:
        raw = base64.b64decode(signed, validate=True)
        Ed25519PublicKey.from_public_bytes(key).verify(raw, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _message(signature: bytes, manifest: bytes) -> bytes:
    return _PURPOSE + b"".join(hashlib.sha256(part).digest() for part in (signature, manifest))


def _key(variable: str, text: str) -> bytes:
    """Decode a key; a message must not show it."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UserError(
            f"{variable}: expected the base64 of {_KEY_BYTES} bytes, see docs/archives.md"
        )
    return key
