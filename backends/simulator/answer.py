"""What a request is answered with, decided whole before the first token is sent.

The same process seed, model, prompt and request seed give the same answer. A request without a seed and with
a temperature above 0 also gets the running number of the request mixed in, so that answers differ while a
replay of the same requests repeats them.

Completion tokens are the tokens that were generated. Recounting the text gives the same number, except after
a stop string: as with real engines, the tokens that made it were generated and are counted, though its
letters are cut from the text.

Pure: all randomness comes from the digest.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import orjson

from backends.simulator import rules
from backends.simulator.options import SimOptions
from backends.simulator.schema import GenerationRequest, Route, Tool
from backends.simulator.settings import UNICODE_SUFFIX
from backends.simulator.structured import json_answer
from backends.simulator.tokens import tokenize
from backends.simulator.vocabulary import PLAIN, UNICODE, Corpus, chat_fragment, corpus, text_fragment

OVERRUN_TOKENS = 100_000
"""The bound of an answer that takes no notice of its request's."""

_MESSAGE = re.compile(r"<\|(?:im_start\|>)?([a-z]+)(?:\|>)?\n(.*?)<\|(?:im_)?end\|>", re.DOTALL)
"""A message as our own server renders it, or as a chat template in the ChatML format does before a Triton server."""
_MASK = 2**64 - 1
_ODD = 0x9E3779B97F4A7C15


@dataclass(slots=True)
class Choice:
    """One answer of a request.

    Attributes:
        tokens: completion tokens, reasoning included.
        fragments: for each completion token the inside of a chunk's choice, encoded; not made for whole answers.
        pieces: for each completion token the text that is shown when it comes (may be empty); streamed prose does
            without.
        finish_reason: stop, length or tool_calls.
        stop_reason: the stop string that ended it.
        ends_with_token: whether the finish reason comes with the last token, not in a chunk of its own.
        logprobs: for each token its log probability object, where asked for.
    """

    index: int
    tokens: int
    fragments: list[bytes]
    pieces: Sequence[str]
    finish_reason: str
    stop_reason: str | None = None
    ends_with_token: bool = False
    reasoning: Sequence[str] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)


def answer(request: GenerationRequest, options: SimOptions, *, seed: int, nonce: int, tokens: int) -> list[Choice]:
    """Decide all choices of a request.

    Args:
        seed: of the process.
        nonce: the running number of the request.
        tokens: the usual length of an answer.
    """
    if options.overrun:
        request = replace(request, max_tokens=OVERRUN_TOKENS)
    by_rules = request.model in rules.MODELS and options.text is None
    text = corpus(_vocabulary(request, options))
    choices: list[Choice] = []
    for prompt in request.prompts:
        if by_rules:
            options = replace(options, text=rules.answer(request.model, *_asked(prompt)))
        draw = _digest(request, options, prompt, seed, nonce)
        for _ in range(request.n):
            index = len(choices)
            choices.append(_choice(request, options, text, index, (draw + index * _ODD) & _MASK, tokens, prompt))
    return choices


def _choice(
    request: GenerationRequest, options: SimOptions, text: Corpus, index: int, draw: int, tokens: int, prompt: str
) -> Choice:
    start = text.starts[draw % len(text.starts)]
    natural = _natural_length(request, options, draw, tokens)
    if request.tool is not None:
        return _tool_call(request, request.tool, index, draw)
    plain = request.json_schema is None and options.text is None and not request.stop and not request.echo
    if plain and request.top_logprobs is None and not options.reasoning_tokens:
        return _prose(request, text, index, start, natural)
    reasoning = _opening(text.stretch(start, options.reasoning_tokens or 0))
    if options.text is not None:
        pieces = tokenize(options.text)
    elif request.json_schema is not None:
        prose = "".join(_opening(text.stretch(start, max(1, natural - 24)))).strip()
        pieces = tokenize(orjson.dumps(json_answer(request.json_schema, draw, prose)).decode())
    else:
        pieces = _prose_pieces(text, start, natural, complete=natural < request.max_tokens)
    return _worded(request, index, reasoning, pieces, prompt)


def _prose(request: GenerationRequest, text: Corpus, index: int, start: int, natural: int) -> Choice:
    """The usual case: a stretch of the corpus, whose tokens are encoded already."""
    length = min(natural, request.max_tokens)
    cut = natural >= request.max_tokens
    reason = "length" if cut else "stop"
    if not request.stream:
        pieces = _prose_pieces(text, start, length, complete=not cut)
        return Choice(index, length, [], pieces, reason, ends_with_token=cut)
    chat = request.route is Route.CHAT
    fragments = text.chat_stretch(start, length) if chat else text.text_stretch(start, length)
    encode = chat_fragment if chat else text_fragment
    if length:
        fragments[0] = encode(text.tokens[start].lstrip(" "))
    if not cut and length > 1 and _wants_full_stop(text.token(start + length - 2)):
        fragments[-1] = encode(".")
    return Choice(index, length, fragments, (), reason, ends_with_token=cut)


def _worded(request: GenerationRequest, index: int, reasoning: list[str], pieces: list[str], prompt: str) -> Choice:
    """The general case: limits, stop strings, log probabilities and reasoning, token by token."""
    reasoning = reasoning[: request.max_tokens]
    left = request.max_tokens - len(reasoning)
    cut = len(pieces) >= left
    pieces = pieces[:left]
    finish_reason, stop_reason = ("length" if cut else "stop"), None
    generated = pieces
    if request.stop and pieces:
        pieces, stop_reason = cut_at_stop(pieces, request.stop)
        generated = generated[: len(pieces)]
        if stop_reason is not None:
            finish_reason = "stop"
    logprobs: list[dict[str, Any]] = []
    if request.top_logprobs is not None:
        logprobs = [_logprob(token, request.top_logprobs) for token in generated]
    if request.echo and pieces:
        pieces = [prompt + pieces[0], *pieces[1:]]
    fragments = [_reasoning_fragment(token) for token in reasoning]
    if request.route is Route.CHAT:
        encoded = [orjson.dumps({"content": [item]}) for item in logprobs] or [b"null"] * len(pieces)
        fragments += map(chat_fragment, pieces, encoded)
    else:
        encoded = [orjson.dumps(completion_logprobs([item])) for item in logprobs] or [b"null"] * len(pieces)
        fragments += map(text_fragment, pieces, encoded)
    return Choice(
        index,
        len(fragments),
        fragments,
        pieces,
        finish_reason,
        stop_reason,
        ends_with_token=bool(fragments) and (cut or stop_reason is not None),
        reasoning=reasoning,
        logprobs=logprobs,
    )


def _tool_call(request: GenerationRequest, tool: Tool, index: int, draw: int) -> Choice:
    """A call whose name takes one token and whose arguments take theirs."""
    arguments = tokenize(orjson.dumps(json_answer(tool.parameters or {"type": "object"}, draw, "")).decode())
    cut = len(arguments) + 1 >= request.max_tokens
    arguments = arguments[: request.max_tokens - 1]
    call_id = f"chatcmpl-tool-{draw:016x}{index:016x}"
    opening = {"id": call_id, "type": "function", "index": 0, "function": {"name": tool.name, "arguments": ""}}
    fragments = [b'"delta":{"tool_calls":[%b]},"logprobs":null' % orjson.dumps(opening)]
    fragments += [
        b'"delta":{"tool_calls":[%b]},"logprobs":null' % orjson.dumps({"index": 0, "function": {"arguments": piece}})
        for piece in arguments
    ]
    return Choice(
        index,
        len(fragments),
        fragments,
        arguments,
        "length" if cut else "tool_calls",
        ends_with_token=cut,
        tool_call_id=call_id,
        tool_name=tool.name,
    )


def cut_at_stop(pieces: Sequence[str], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """Cut a text at the first stop string, also one that spans tokens.

    Returns what is shown with each token that was generated, and the stop string that was met. As in vLLM,
    the last characters are held back while they could still begin a stop string.
    """
    held = max(map(len, stops)) - 1
    text, shown = "", 0
    out: list[str] = []
    for piece in pieces:
        before = len(text)
        text += piece
        found = [(at, stop) for stop in stops if (at := text.find(stop, max(0, before - len(stop) + 1))) >= 0]
        if found:
            at, stop = min(found)
            out.append(text[shown:at])
            return out, stop
        upto = max(shown, len(text) - held)
        out.append(text[shown:upto])
        shown = upto
    if out:
        out[-1] += text[shown:]
    return out, None


def completion_logprobs(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Log probabilities in the shape of text completions."""
    offsets = [0]
    for item in items:
        offsets.append(offsets[-1] + len(item["token"]))
    return {
        "text_offset": [offset for offset, _ in pairwise(offsets)],
        "token_logprobs": [item["logprob"] for item in items],
        "tokens": [item["token"] for item in items],
        "top_logprobs": [{top["token"]: top["logprob"] for top in item["top_logprobs"]} for item in items],
    }


def _natural_length(request: GenerationRequest, options: SimOptions, draw: int, tokens: int) -> int:
    if options.tokens is not None:
        return options.tokens
    if request.ignore_eos:
        return request.max_tokens
    low = max(1, tokens // 2)
    return max(request.min_tokens, low + (draw >> 32) % (tokens + 1))


def _prose_pieces(text: Corpus, start: int, length: int, *, complete: bool) -> list[str]:
    pieces = _opening(text.stretch(start, length))
    if complete and length > 1 and _wants_full_stop(pieces[-2]):
        pieces[-1] = "."
    return pieces


def _wants_full_stop(last_but_one: str) -> bool:
    """Whether the last token shall be a full stop: an answer that ends by itself ends as a sentence does."""
    return last_but_one.strip().isalpha()


def _opening(pieces: list[str]) -> list[str]:
    """A text starts without the space that joins a word to the one before."""
    if pieces:
        pieces[0] = pieces[0].lstrip(" ") or pieces[0]
    return pieces


def _reasoning_fragment(text: str) -> bytes:
    return b'"delta":{"reasoning":' + orjson.dumps(text) + b'},"logprobs":null'


def _logprob(token: str, alternatives: int) -> dict[str, Any]:
    others = [_scored(f" {rank}", -2.0 - rank) for rank in range(1, alternatives)]
    return {**_scored(token, -0.105), "top_logprobs": [_scored(token, -0.105), *others][:alternatives]}


def _scored(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _asked(prompt: str) -> tuple[str, str]:
    """The instructions and the last message of a rendered prompt."""
    found = _MESSAGE.findall(prompt)
    instructions = "\n".join(text for role, text in found if role in ("system", "developer"))
    return instructions, next((text for role, text in reversed(found) if role == "user"), prompt)


def _vocabulary(request: GenerationRequest, options: SimOptions) -> str:
    if options.vocabulary is not None:
        return options.vocabulary
    return UNICODE if request.model.endswith(UNICODE_SUFFIX) else PLAIN


def _digest(request: GenerationRequest, options: SimOptions, prompt: str, seed: int, nonce: int) -> int:
    salt = 0 if request.repeatable or options.seed is not None else nonce
    named = f"{seed}|{request.model}|{request.seed}|{options.seed}|{salt}|".encode()
    return int.from_bytes(blake2b(named + prompt.encode("utf-8", "surrogatepass"), digest_size=8).digest())
