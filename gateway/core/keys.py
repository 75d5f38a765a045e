"""API keys: how one is made, read and compared.

Floor: core (pure); random bytes come from the caller. It must not know where keys are stored.

A key reads ``pareta_sk_<id>.<secret>``. The id is 24 characters of lower-case base32: 18 of randomness (90 bits)
and 6 of a message authentication code (30 bits) under the installation's pepper. The code is not what protects a
customer (the secret does that); it lets every worker refuse a made-up id without asking a database, so that nobody
can turn guesses into queries. Of the secret (200 bits) only the SHA-256 is ever kept: it is random, not chosen by a
person, so a slow password hash would add latency and no safety.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import b32encode
from dataclasses import dataclass
from typing import Final

from gateway.core.state import Key

PREFIX: Final = "pareta_sk_"
ID_CHARS: Final = 24
MAC_CHARS: Final = 6
PEPPER_BYTES: Final = 32
_ID_BODY_BYTES: Final = 12
_ID_BODY_CHARS: Final = ID_CHARS - MAC_CHARS
_SECRET_BYTES: Final = 25
MINT_BYTES: Final = _ID_BODY_BYTES + _SECRET_BYTES
"""How many random bytes :func:`mint` wants."""

# The secret's alphabet is wider than what we mint, so that a later longer or mixed-case form needs no new parser.
_TOKEN: Final = re.compile(r"pareta_sk_([a-z2-7]{24})\.([A-Za-z0-9_-]{32,128})", re.ASCII)
_MAC_CONTEXT: Final = b"pareta key id v1:"


@dataclass(frozen=True, slots=True, repr=False)
class MintedKey:
    """A new key. ``token`` is shown to its owner once and kept nowhere; it is left out of ``repr`` on purpose."""

    id: str
    token: str
    secret_hash: bytes

    def __repr__(self) -> str:
        return f"MintedKey(id={self.id!r})"


def mint(pepper: bytes, random_bytes: bytes) -> MintedKey:
    """Make a key.

    Args:
        pepper: the installation's secret, :data:`PEPPER_BYTES` bytes.
        random_bytes: exactly :data:`MINT_BYTES` bytes of a cryptographic source.
    """
    if len(random_bytes) != MINT_BYTES:
        raise ValueError(f"mint() wants exactly {MINT_BYTES} random bytes, got {len(random_bytes)}.")
    body = _base32(random_bytes[:_ID_BODY_BYTES])[:_ID_BODY_CHARS]
    key_id = body + _mac(pepper, body)
    secret = _base32(random_bytes[_ID_BODY_BYTES:])
    return MintedKey(id=key_id, token=f"{PREFIX}{key_id}.{secret}", secret_hash=hash_secret(secret))


def parse(token: str) -> tuple[str, str] | None:
    """Split a key into its id and its secret; ``None`` if it is not shaped like one of ours."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else None


def id_is_ours(pepper: bytes, key_id: str) -> bool:
    """Whether this installation minted the id: false for every made-up one, but for one guess in a billion."""
    if len(key_id) != ID_CHARS or not key_id.isascii():
        return False
    return hmac.compare_digest(_mac(pepper, key_id[:_ID_BODY_CHARS]), key_id[_ID_BODY_CHARS:])


def secret_matches(key: Key, secret: str) -> bool:
    """Compare a presented secret with the stored hash, in time that does not depend on either."""
    return hmac.compare_digest(hash_secret(secret), key.secret_hash)


def hash_secret(secret: str) -> bytes:
    """SHA-256 of a key's secret part, 32 bytes: the only form that is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _mac(pepper: bytes, body: str) -> str:
    if len(pepper) != PEPPER_BYTES:
        raise ValueError(f"The pepper must be {PEPPER_BYTES} bytes.")
    return _base32(hmac.digest(pepper, _MAC_CONTEXT + body.encode("ascii"), "sha256"))[:MAC_CHARS]


def _base32(data: bytes) -> str:
    return b32encode(data).decode("ascii").rstrip("=").lower()
