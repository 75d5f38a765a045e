"""What the models of the test's Triton server decide before anything is sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulator.options import BadOption
from backends.triton_server.generation import Ask, decide
from backends.triton_server.interfaces import INTERFACES
from backends.triton_server.repository import config_text
from backends.triton_server.steering import Fault, Steering, take_marker

ANY_TEXT = st.text(max_size=40).filter(lambda text: "<<sim " not in text)


@given(ANY_TEXT, ANY_TEXT, st.text(max_size=60))
def test_a_marker_is_taken_out_wherever_it_stands(before: str, after: str, said: str) -> None:
    """The prompt is what it was without it, whatever the marker's own text holds, `>>` and braces included."""
    marker = f"<<sim {json.dumps({'text': said, 'tag': 'a'}, ensure_ascii=False)}>>"
    prompt, steering = take_marker(before + marker + after)
    assert prompt == before + after
    assert steering == Steering(text=said, tag="a")


@pytest.mark.parametrize(
    "marker",
    [
        "<<sim >>",
        "<<sim {}",
        "<<sim [1]>>",
        '<<sim {"tokens": 1} >>',
        '<<sim {"tokens": "1"}>>',
        '<<sim {"tokens": true}>>',
        '<<sim {"tokens": -1}>>',
        '<<sim {"burst": 0}>>',
        '<<sim {"fail": "oops"}>>',
        '<<sim {"sort": 1}>>',
    ],
)
def test_a_wrong_marker_is_refused(marker: str) -> None:
    """A test that misspells an option must not pass because nothing happened."""
    with pytest.raises(BadOption):
        take_marker(f"Hello {marker}")


def test_later_markers_win() -> None:
    """A conversation's last word counts: markers of earlier turns are still in the prompt."""
    prompt, steering = take_marker('a<<sim {"tokens": 3, "fail": "hang"}>>b<<sim {"tokens": 4}>>c')
    assert prompt == "abc"
    assert (steering.tokens, steering.fail) == (4, Fault.HANG)


@settings(deadline=None)  # the first answer makes the corpus
@given(st.text(min_size=1, max_size=40), st.booleans())
def test_cut_characters_come_back_whole(said: str, split: bool) -> None:
    """The bytes of all pieces are the bytes of the text, and no piece was lost or added by cutting."""
    ask = Ask(prompt="", max_tokens=1000, stream=True)
    (choice,) = decide(ask, "", Steering(text=said, split_utf8=split), nonce=1)
    (whole,) = decide(ask, "", Steering(text=said), nonce=1)
    assert b"".join(choice.pieces) == b"".join(whole.pieces)
    assert len(choice.pieces) == len(whole.pieces)


def test_the_seed_decides_the_words() -> None:
    """The same seed says the same; without one, two requests differ unless they ask to be repeatable."""
    seeded = Ask(prompt="", max_tokens=20, stream=True, seed=5)
    assert decide(seeded, "Hi", Steering(), nonce=1) == decide(seeded, "Hi", Steering(), nonce=2)
    free = Ask(prompt="", max_tokens=20, stream=True)
    assert decide(free, "Hi", Steering(), nonce=1) != decide(free, "Hi", Steering(), nonce=2)
    fixed = Ask(prompt="", max_tokens=20, stream=True, repeatable=True)
    assert decide(fixed, "Hi", Steering(), nonce=1) == decide(fixed, "Hi", Steering(), nonce=2)


@pytest.mark.parametrize(("cuts", "shown"), [(True, b"one "), (False, b"one STOP")])
def test_a_stop_word_ends_an_answer(cuts: bool, shown: bytes) -> None:
    """It ends with the token that completes the word; whether the word is seen depends on the interface."""
    ask = Ask(prompt="", max_tokens=50, stream=True, stop=("STOP",), cuts_stop=cuts)
    (choice,) = decide(ask, "", Steering(text="one STOP two"), nonce=1)
    assert (b"".join(choice.pieces), choice.finish, choice.stop) == (shown, "stop", "STOP")


def test_parameters_are_quoted_in_a_configuration() -> None:
    """A quote, a backslash or a newline in a parameter stays inside its string."""
    text = config_text(INTERFACES["ensemble"], {"path": 'a"b\\c\nd'})
    assert 'string_value: "a\\"b\\\\c\\nd"' in text
