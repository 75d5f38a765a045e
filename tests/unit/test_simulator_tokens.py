"""The simulator's tokenizer: anybody can count again what it says it counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.simulator.tokens import count_tokens, render_chat, tokenize
from backends.simulator.vocabulary import VOCABULARIES, corpus


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    """No character is lost, none is in two tokens."""
    assert "".join(tokenize(text)) == text


@given(st.text(alphabet=st.sampled_from("ab <|>_.,1 \n\té日😀\u2028\u0301"), max_size=80), st.data())
def test_a_cut_after_a_token_leaves_the_tokens_before_it(text: str, data: st.DataObject) -> None:
    """What was streamed so far counts as what was counted so far."""
    tokens = tokenize(text)
    cut = data.draw(st.integers(0, len(tokens)))
    assert tokenize("".join(tokens[:cut])) == tokens[:cut]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("Hello, world!", ["Hello", ",", " world", "!"]),
        ("  two", [" ", " two"]),
        ("infrastructure", ["infrastructu", "re"]),
        ("in 12345.", ["in", " 123", "45", "."]),
        ("日本 語", ["日", "本", " 語"]),
        ("a\n\nb", ["a", "\n", "\n", "b"]),
        ("<|user|>\n", ["<|user|>", "\n"]),
        ("a\u2028b", ["a", "\u2028", "b"]),
    ],
)
def test_the_rule_by_example(text: str, tokens: list[str]) -> None:
    """The examples that the rule's description gives rise to."""
    assert tokenize(text) == tokens
    assert count_tokens(text) == len(tokens)


def test_the_chat_template_counts_marks_roles_and_text() -> None:
    """A prompt is its text plus three marks and two line ends for one message and the opening of the answer."""
    assert count_tokens(render_chat([("user", "Hello, world!")])) == 4 + len(["<|user|>", "\n", "<|end|>", "\n"]) + 2
    assert count_tokens(render_chat([("user", "x")], "{}")) > count_tokens(render_chat([("user", "x")]))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_corpus_can_be_counted_again(vocabulary: str) -> None:
    """The stored tokens are the tokens of the stored text, also from any sentence on."""
    text = corpus(vocabulary)
    assert tokenize("".join(text.tokens)) == text.tokens
    for start in text.starts[:: len(text.starts) // 50]:
        assert tokenize("".join(text.tokens[start : start + 200])) == text.tokens[start : start + 200]


def test_the_vocabularies_are_sizeable_and_awkward() -> None:
    """Prose has more than a thousand different tokens; the awkward one has the characters that break framing."""
    assert len(set(corpus("plain").tokens)) > 1_000
    awkward = "".join(corpus("unicode").tokens)
    for character in '\u2028\u2029\u0085\u200d\ufeff\\"\t\n日😀':
        assert character in awkward or character == "日"


def test_a_stretch_goes_round_at_the_end() -> None:
    """Even an answer longer than the corpus has its length."""
    text = corpus("plain")
    size = len(text.tokens)
    assert len(text.stretch(size - 3, 10)) == 10
    assert len(text.chat_stretch(size - 3, 2 * size)) == 2 * size
