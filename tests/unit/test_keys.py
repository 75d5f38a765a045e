"""What an API key is, and that made-up ones are told apart without a database."""

from __future__ import annotations

import hashlib
import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.core import keys
from gateway.core.state import Key, Limits, Scope

PEPPER = bytes(range(32))
randomness = st.binary(min_size=keys.MINT_BYTES, max_size=keys.MINT_BYTES)


def _stored(minted: keys.MintedKey) -> Key:
    return Key(minted.id, "org_aaaaaaaaaaaa", minted.secret_hash, Scope.FULL, None, False, Limits(), Limits())


@given(randomness)
def test_a_minted_key_is_parsed_back_and_recognised(random_bytes: bytes) -> None:
    """Whatever the randomness, a minted key parses, its id is ours, and its secret fits its stored hash."""
    minted = keys.mint(PEPPER, random_bytes)
    parsed = keys.parse(minted.token)
    assert parsed is not None
    key_id, secret = parsed
    assert key_id == minted.id
    assert len(key_id) == keys.ID_CHARS
    assert len(secret) >= 32
    assert keys.id_is_ours(PEPPER, key_id)
    assert keys.secret_matches(_stored(minted), secret)


@given(randomness, st.integers(0, keys.ID_CHARS - 1), st.sampled_from(string.ascii_lowercase + "234567"))
def test_an_id_with_one_character_changed_is_not_ours(random_bytes: bytes, at: int, other: str) -> None:
    """A mistyped id is refused without a query, wherever the mistake is."""
    key_id = keys.mint(PEPPER, random_bytes).id
    changed = key_id[:at] + other + key_id[at + 1 :]
    assert keys.id_is_ours(PEPPER, changed) == (changed == key_id)


def test_made_up_ids_are_not_ours() -> None:
    """Of 100,000 random ids of the right shape none passes: the chance of one is 1 in 10,000."""
    rng = random.Random(20260101)
    alphabet = string.ascii_lowercase + "234567"
    passed = [i for i in range(100_000) if keys.id_is_ours(PEPPER, "".join(rng.choices(alphabet, k=keys.ID_CHARS)))]
    assert passed == []


def test_an_id_of_another_installation_is_not_ours() -> None:
    """The pepper decides: the same id is ours here and nobody's elsewhere."""
    key_id = keys.mint(PEPPER, bytes(keys.MINT_BYTES)).id
    assert keys.id_is_ours(PEPPER, key_id)
    assert not keys.id_is_ours(bytes(32), key_id)


def test_a_wrong_secret_does_not_match() -> None:
    """The secret of one key never opens another."""
    one = keys.mint(PEPPER, bytes(keys.MINT_BYTES))
    other = keys.mint(PEPPER, bytes([1] * keys.MINT_BYTES))
    parsed = keys.parse(other.token)
    assert parsed is not None
    assert not keys.secret_matches(_stored(one), parsed[1])
    assert not keys.secret_matches(_stored(one), "")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "pareta_sk_",
        "pareta_sk_live_abcdefghijkl",
        "pareta_sk_" + "a" * 24,
        "pareta_sk_" + "a" * 24 + ".",
        "pareta_sk_" + "a" * 24 + "." + "b" * 31,
        "pareta_sk_" + "a" * 24 + "." + "b" * 129,
        "pareta_sk_" + "a" * 23 + "." + "b" * 40,
        "pareta_sk_" + "A" * 24 + "." + "b" * 40,
        "pareta_sk_" + "a" * 24 + "." + "b" * 40 + "\n",
        " pareta_sk_" + "a" * 24 + "." + "b" * 40,
        "pareta_sk_" + "a" * 24 + "." + "é" * 40,
        "pareta_sk_" + "١" * 24 + "." + "b" * 40,
        "sk-" + "a" * 24 + "." + "b" * 40,
    ],
)
def test_what_is_not_shaped_like_a_key_is_not_parsed(token: str) -> None:
    """Anything but the exact layout is no key: no trimming, no foreign digits, no other prefix."""
    assert keys.parse(token) is None


@given(st.text(max_size=200))
@example("é" * 24)
@example("\udcff" * 24)
def test_no_text_breaks_the_parser(text: str) -> None:
    """Any text a client can send is answered with yes or no, never with an exception."""
    keys.parse(text)
    keys.parse(f"{keys.PREFIX}{text}")
    keys.id_is_ours(PEPPER, text)
    keys.hash_secret(text)


def test_only_a_hash_of_the_secret_is_kept() -> None:
    """What is stored is SHA-256 of the secret, and printing a minted key does not show the secret."""
    minted = keys.mint(PEPPER, bytes(range(keys.MINT_BYTES)))
    parsed = keys.parse(minted.token)
    assert parsed is not None
    assert minted.secret_hash == hashlib.sha256(parsed[1].encode()).digest()
    assert parsed[1] not in repr(minted)


def test_the_wrong_amount_of_randomness_is_a_bug() -> None:
    """Too few random bytes never make a weak key."""
    with pytest.raises(ValueError, match="random bytes"):
        keys.mint(PEPPER, b"short")
    with pytest.raises(ValueError, match="pepper"):
        keys.mint(b"short", bytes(keys.MINT_BYTES))
