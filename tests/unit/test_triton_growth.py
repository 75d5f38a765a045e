"""Texts that come whole each time, and texts that come as deltas, become the same answer."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.triton.growth import SURELY_BYTES, Growth

PIECES = st.lists(st.text(alphabet="ab\n ä🙂", min_size=1, max_size=12).map(str.encode), min_size=1, max_size=12)


def told(growth: Growth, texts: list[bytes]) -> bytes:
    return b"".join(map(growth.add, texts)) + growth.rest()


@pytest.mark.parametrize("is_whole", [True, None])
@given(pieces=PIECES)
def test_whole_texts(is_whole: bool | None, pieces: list[bytes]) -> None:
    """Whole texts become deltas, whether their kind is known or has to be found out."""
    assert told(Growth(is_whole=is_whole), list(accumulate(pieces))) == b"".join(pieces)


@given(pieces=PIECES)
def test_known_deltas(pieces: list[bytes]) -> None:
    """Deltas that are known to be some pass as they are."""
    assert told(Growth(is_whole=False), pieces) == b"".join(pieces)


@given(words=st.lists(st.sampled_from(["the", "a", "tree", "Baum", "ä"]), min_size=2, max_size=60))
def test_deltas_are_recognised(words: list[str]) -> None:
    """Deltas as tokenizers make them, with a space before each further word, are recognised and nothing is lost."""
    pieces = [words[0].encode(), *(f" {word}".encode() for word in words[1:])]
    assert told(Growth(is_whole=None), pieces) == b"".join(pieces)


def test_a_wrong_guess_is_mended() -> None:
    """Deltas that look like whole texts at first are told in full once one doesn't."""
    assert told(Growth(is_whole=None), [b"\n", b"\n\n", b"Yes"]) == b"\n\n\nYes"
    assert told(Growth(is_whole=None), [b"ha", b"h", b"i"]) == b"hahi"


def test_a_stop_text_cut_off_at_the_end() -> None:
    """An engine that takes a stop text back at the end sends less than before: nothing is told twice."""
    assert told(Growth(is_whole=None), [b"so it is", b"so it is.\nEN", b"so it is."]) == b"so it is.\nEN"


def test_repetition_is_no_end() -> None:
    """A response with nothing new tells nothing, of either kind."""
    assert told(Growth(is_whole=None), [b"", b"one", b"one", b"", b"one two"]) == b"one two"


@pytest.mark.parametrize("is_whole", [True, None])
def test_half_a_character_waits(is_whole: bool | None) -> None:
    """U+FFFD at the end of a whole text is a character that has yet to come: it is not told."""
    growth = Growth(is_whole=is_whole)
    assert growth.add("gr\ufffd".encode()) == b"gr"
    assert growth.add("gr\ufffd\ufffd".encode()) == b""
    assert growth.add("grün".encode()) == "ün".encode()
    assert growth.rest() == b""


def test_an_answer_that_ends_in_half_a_character() -> None:
    """What never became a character is told at the end."""
    assert told(Growth(is_whole=True), [b"gr", "gr\ufffd".encode()]) == "gr\ufffd".encode()


def test_once_sure_always_sure() -> None:
    """After a long text has been repeated, a tokenizer that changes its mind about a space breaks nothing."""
    start = b"x" * SURELY_BYTES
    growth = Growth(is_whole=None)
    assert growth.add(start) == start
    assert growth.add(start + b" .") == b" ."
    assert growth.add(start + b". And") == b"And"
    assert growth.add(start + b". And so") == b" so"
