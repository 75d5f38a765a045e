"""The simulator's tokenizer: a fixed rule on text, so that anybody can count its tokens again.

A token is, tried in this order at each position:
a special mark such as `<|user|>`; an optional space followed by up to 12 letters, up to 3 digits, or one
other visible character; one character of white space. Every character belongs to exactly one token, so the
tokens of a text joined give the text. The rule never looks ahead, therefore cutting a text after a token
leaves the tokens before the cut as they were: the count of a prefix is what was streamed so far.

Pure: no clock, no randomness, no I/O.
"""

import re
from collections.abc import Iterable

LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u052f"
"""Letters that form words. Others (Chinese, Japanese, emoji, …) are a token for each character."""

_TOKEN = re.compile(rf"<\|[a-z_]{{1,32}}\|>| ?(?:[{LETTERS}]{{1,12}}|[0-9]{{1,3}}|[^\s{LETTERS}0-9])|\s")

IMAGE_TOKENS = 256
"""What one image in a message adds to the prompt."""


def tokenize(text: str) -> list[str]:
    """Cut `text` into its tokens; joined they give `text` again."""
    return _TOKEN.findall(text)


def count_tokens(text: str) -> int:
    """Count the tokens of `text`."""
    return len(_TOKEN.findall(text))


def render_chat(messages: Iterable[tuple[str, str]], tools_text: str = "") -> str:
    """Render (role, text) pairs with the chat template whose tokens are the prompt tokens."""
    parts = [f"<|tools|>{tools_text}<|end|>"] if tools_text else []
    parts += [f"<|{role}|>\n{text}<|end|>\n" for role, text in messages]
    parts.append("<|assistant|>\n")
    return "".join(parts)
