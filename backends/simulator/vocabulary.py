"""Long texts made once from the word lists; every answer is a stretch of one of them.

Answers are slices of lists that already hold each token encoded for the wire, so that making an answer of
hundreds of tokens costs about a microsecond and sending one token needs no encoder.

Pure: the randomness is a seeded generator of its own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import orjson

from backends.simulator import words
from backends.simulator.tokens import tokenize

PLAIN = "plain"
UNICODE = "unicode"
VOCABULARIES = (PLAIN, UNICODE)
"""`plain` is English prose; `unicode` is full of characters that are awkward to carry."""

Item = TypeVar("Item")

_SENTENCES = 6_000
_CORPUS_SEED = 20_240_501


@dataclass(frozen=True, slots=True)
class Corpus:
    """A long text by tokens.

    Attributes:
        tokens: the tokens, in order; joined they are the text.
        chat: each token as the inside of a chat chunk's choice: `"delta":{"content":" word"},"logprobs":null`.
        text: each token as the inside of a text completion's choice: `"text":" word","logprobs":null`.
        starts: indexes in `tokens` where a sentence starts.
    """

    tokens: list[str]
    chat: list[bytes]
    text: list[bytes]
    starts: list[int]

    def token(self, index: int) -> str:
        """The token at `index`, going round at the end."""
        return self.tokens[index % len(self.tokens)]

    def stretch(self, start: int, length: int) -> list[str]:
        """`length` tokens from `start` on, going round at the end."""
        return _around(self.tokens, start, length)

    def chat_stretch(self, start: int, length: int) -> list[bytes]:
        """The same stretch, encoded for chat chunks."""
        return _around(self.chat, start, length)

    def text_stretch(self, start: int, length: int) -> list[bytes]:
        """The same stretch, encoded for text completion chunks."""
        return _around(self.text, start, length)


def chat_fragment(text: str, logprobs: bytes = b"null") -> bytes:
    """The inside of a chat chunk's choice that carries `text`."""
    return b'"delta":{"content":' + orjson.dumps(text) + b'},"logprobs":' + logprobs


def text_fragment(text: str, logprobs: bytes = b"null") -> bytes:
    """The inside of a text completion chunk's choice that carries `text`."""
    return b'"text":' + orjson.dumps(text) + b',"logprobs":' + logprobs


@cache
def corpus(vocabulary: str) -> Corpus:
    """The corpus of one of `VOCABULARIES`, built on first use (some 100 ms)."""
    rng = random.Random(_CORPUS_SEED)  # noqa: S311 - prose, not a secret
    sentences = _awkward_sentences(rng) if vocabulary == UNICODE else _plain_sentences(rng)
    tokens: list[str] = []
    starts: list[int] = []
    for sentence in sentences:
        starts.append(len(tokens))
        tokens += tokenize(sentence)
    return Corpus(tokens, [chat_fragment(t) for t in tokens], [text_fragment(t) for t in tokens], starts)


def _around(items: list[Item], start: int, length: int) -> list[Item]:
    stretch = items[start : start + length]
    while len(stretch) < length:
        stretch += items[: length - len(stretch)]
    return stretch


def _awkward_sentences(rng: random.Random) -> Iterator[str]:
    for _ in range(1_000):
        # A leading space, none at the end: no token may reach over the border of two sentences.
        yield " " + "".join(rng.sample(words.AWKWARD, 5)).rstrip(" ")


def _plain_sentences(rng: random.Random) -> Iterator[str]:
    space = " "
    for index in range(_SENTENCES):
        paragraph_ends = index % 7 == 6
        yield space + _sentence(rng) + ("\n\n" if paragraph_ends else "")
        space = "" if paragraph_ends else " "


def _sentence(rng: random.Random) -> str:
    text = _clause(rng)
    draw = rng.random()
    if draw < 0.35:
        text += f", {rng.choice(words.CONJUNCTIONS)} {_clause(rng)}"
    elif draw < 0.45:
        text = f"{rng.choice(words.ADVERBS)}, {text}"
    elif draw < 0.50:
        text += f" ({_noun_phrase(rng)})"
    elif draw < 0.55:
        text += f" in {rng.randint(1900, 2050)}"
    elif draw < 0.58:
        text += f": {rng.randint(2, 99)}.{rng.randint(0, 9)} percent"
    return text[0].upper() + text[1:] + rng.choice("......?!")


def _clause(rng: random.Random) -> str:
    parts = [_noun_phrase(rng), rng.choice(words.VERBS), _noun_phrase(rng)]
    if rng.random() < 0.3:
        parts.insert(1, rng.choice(words.ADVERBS))
    if rng.random() < 0.5:
        parts += [rng.choice(words.PREPOSITIONS), _noun_phrase(rng)]
    return " ".join(parts)


def _noun_phrase(rng: random.Random) -> str:
    adjective = f"{rng.choice(words.ADJECTIVES)} " if rng.random() < 0.45 else ""
    named = adjective + rng.choice(words.NOUNS)
    determiner = rng.choice(words.DETERMINERS)
    return f"an {named}" if determiner == "a" and named[0] in "aeiou" else f"{determiner} {named}"
