"""What a request is answered with: the simulator's own words, decided whole before the first token is sent.

The same prompt, seed and options give the same words on every interface. Tokens are the simulator's: a fixed rule on
text (`backends.simulator.tokens`), by which prompts are counted too, after the marker was taken out. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.simulator.answer import answer, cut_at_stop
from backends.simulator.schema import GenerationRequest, Route
from backends.simulator.tokens import count_tokens
from backends.triton_server.steering import Steering

USUAL_TOKENS = 64
LOGPROB = -0.105
"""The log probability of every token, as the simulator has it."""

USUAL_MODEL = "sim-8b"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for, whatever interface it came by.

    Attributes:
        prompt: as it came, marker included.
        max_tokens: of one choice.
        repeatable: asked again, the answer shall be the same even without a seed.
        schema: of a JSON answer; `{}` for any object.
        cuts_stop: whether the interface cuts stop words from the text; otherwise the token that makes one is sent.
        echo: the prompt is part of the output.
        logprobs: are to be reported.
    """

    prompt: str
    max_tokens: int
    stream: bool
    seed: int | None = None
    repeatable: bool = False
    min_tokens: int = 0
    completions: int = 1
    stop: tuple[str, ...] = ()
    cuts_stop: bool = False
    schema: dict[str, Any] | None = None
    echo: bool = False
    logprobs: bool = False


@dataclass(slots=True)
class Choice:
    """One answer: a piece of text for each token that is generated, and how it ends."""

    pieces: list[bytes]
    finish: str
    stop: str | None = None


def decide(ask: Ask, prompt: str, steering: Steering, *, nonce: int, model: str = USUAL_MODEL) -> list[Choice]:
    """All choices of a request.

    Args:
        prompt: without the marker.
        nonce: the running number of the request.
        model: whose words: the simulator's name for it.
    """
    request = GenerationRequest(
        route=Route.COMPLETION,
        model=model,
        prompts=(prompt,),
        prompt_tokens=count_tokens(prompt),
        stream=False,
        include_usage=False,
        continuous_usage=False,
        max_tokens=ask.max_tokens,
        min_tokens=ask.min_tokens,
        ignore_eos=False,
        n=ask.completions,
        seed=ask.seed,
        repeatable=ask.repeatable or ask.seed is not None,
        stop=(),
        top_logprobs=None,
        tool=None,
        json_schema=ask.schema,
        echo=False,
    )
    choices = []
    for made in answer(request, steering.simulator_options, seed=0, nonce=nonce, tokens=USUAL_TOKENS):
        pieces, stop = _stopped(list(made.pieces), ask)
        encoded = [piece.encode() for piece in pieces]
        if steering.split_utf8:
            encoded = _split_characters(encoded)
        choices.append(Choice(encoded, steering.finish or ("stop" if stop else made.finish_reason), stop))
    return choices


def _stopped(pieces: list[str], ask: Ask) -> tuple[list[str], str | None]:
    """The pieces up to the token that completes a stop word."""
    if not ask.stop or not pieces:
        return pieces, None
    shown, stop = cut_at_stop(pieces, ask.stop)
    return (shown if ask.cuts_stop else pieces[: len(shown)]), stop


def _split_characters(pieces: Sequence[bytes]) -> list[bytes]:
    """The same bytes, with each piece that ends in a long character giving that one's last byte to the next."""
    out: list[bytes] = []
    carried = b""
    for number, piece in enumerate(pieces):
        whole, carried = carried + piece, b""
        if number < len(pieces) - 1 and whole and whole[-1] >= 0x80:
            whole, carried = whole[:-1], whole[-1:]
        out.append(whole)
    return out


def read_schema(text: str) -> dict[str, Any]:
    """The schema in a guide's text; `{}` for none.

    Raises:
        ValueError: it is none; a sentence.
    """
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        raise ValueError("The guide is not JSON.") from None
    if not isinstance(value, dict):
        raise ValueError("The guide is not a JSON schema.")
    return value
