"""Authenticate: from the ``Authorization`` header to a key that is valid now.

Floor: dataplane. Usually no wait at all; a key that this worker has not seen is looked up once. One answer for every
way to be wrong, so that nothing about other keys can be learned.
"""

from __future__ import annotations

from gateway.core import errors, keys
from gateway.core.errors import Refused
from gateway.core.ports import StateUnavailable, StateView
from gateway.core.state import Key

MAX_HEADER_BYTES = 512


async def authenticate(state: StateView, header: bytes | None, now_s: float) -> Key:
    """Find the key.

    Args:
        state: the process's view of the keys.
        header: the raw ``Authorization`` value.
        now_s: Unix time, for the expiry.

    Raises:
        Refused: 401, or 503 when keys can't be looked up.
    """
    presented = _parse(header)
    if presented is None:
        raise Refused(errors.invalid_api_key())
    key_id, secret = presented
    key = state.key(key_id)
    if key is None:
        # Only an id that this installation minted is worth a query.
        if not keys.id_is_ours(state.pepper, key_id):
            raise Refused(errors.invalid_api_key())
        try:
            key = await state.fetch_key(key_id)
        except StateUnavailable:
            raise Refused(errors.state_unavailable()) from None
    # The secret first: an expired key of somebody else must look like an unknown one, in time too.
    if key is None or not keys.secret_matches(key, secret):
        raise Refused(errors.invalid_api_key())
    if key.revoked or (key.expires_at_s is not None and key.expires_at_s <= now_s):
        raise Refused(errors.invalid_api_key())
    return key


def may_be_ours(state: StateView, header: bytes | None) -> bool:
    """Whether a key looks like one that this installation minted; no query, no wait."""
    presented = _parse(header)
    return presented is not None and keys.id_is_ours(state.pepper, presented[0])


def _parse(header: bytes | None) -> tuple[str, str] | None:
    if header is None or len(header) > MAX_HEADER_BYTES or header[:7].lower() != b"bearer ":
        return None
    return keys.parse(header[7:].strip().decode("latin-1"))
