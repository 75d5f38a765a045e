"""Bounds of work, the choice of a replica, and the breaker."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import pytest

from backends.wire.breaker import STRIKES_TO_CLOSE, Breaker
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.openai_request import refusal
from backends.wire.request import Kind
from gateway.core.errors import Refused
from gateway.core.estimate import plan, upstream_max_tokens
from gateway.core.openai import read_ask
from gateway.core.routing import least_outstanding
from gateway.core.state import Endpoint, EndpointStatus
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard, hold_nanos

CARD = PriceCard("pc", "ep", {Meter.PROMPT: 1_000_000, Meter.COMPLETION: 2_000_000}, 0, None)


def endpoint(context: int = 1000, output: int = 400) -> Endpoint:
    return Endpoint(
        "ep", "org", "ep", None, EndpointStatus.LIVE, context, output, 600, 0, frozenset({"chat"}), (), (CARD,)
    )


def ask(kind: Kind = Kind.CHAT, **fields: Any) -> Any:
    content = {"messages": [{"role": "user", "content": "hi"}]} if kind is Kind.CHAT else {"input": ["a", "b"]}
    return read_ask(kind, json.dumps({"model": "ep", **content, **fields}).encode())


def test_the_bound_is_prompt_plus_wanted_tokens_times_n() -> None:
    """The hold covers every prompt token there can be and n times the wanted completion."""
    request = ask(max_tokens=50, n=3)
    planned = plan(request, endpoint(), CARD)
    assert planned.tokens_wanted == 50
    assert hold_nanos(planned.quote, 50) == request.prompt_tokens_bound * 1 + 3 * 50 * 2


def test_without_max_tokens_the_endpoints_limit_is_held() -> None:
    """A caller who names no bound is held for the most the endpoint may answer, and the engine is told so."""
    request = ask()
    planned = plan(request, endpoint(context=10_000), CARD)
    assert planned.tokens_wanted == 400
    assert upstream_max_tokens(request, planned, 400) == 400


def test_an_engine_that_is_told_no_bound_is_held_for_its_context() -> None:
    """Where the endpoint's limit may not fit beside a long prompt, only the context bounds the answer, and the hold."""
    request = ask(user="x" * 9_900)
    planned = plan(request, endpoint(context=10_000), CARD)
    assert planned.tokens_wanted == 10_000
    assert upstream_max_tokens(request, planned, 10_000) is None


def test_few_bytes_may_be_many_tokens() -> None:
    """An image's bytes say nothing of its tokens, and a template may write tools with more white space."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    seen = ask(messages=[{"role": "user", "content": [image]}], max_tokens=1)
    assert plan(seen, endpoint(context=5_000), CARD).quote.fixed_nanos == 5_000
    schema: dict[str, Any] = {}
    for _ in range(60):
        schema = {"a": schema}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    assert ask(tools=tools).prompt_tokens_bound > len(json.dumps(tools, indent=4))


def test_images_and_audio_are_in_the_hold_and_not_in_the_tokens() -> None:
    """What comes along has its price in the fixed part, less the discount; its letters are no estimate of tokens."""
    card = PriceCard("pc", "ep", {Meter.IMAGE: 2_000_000_000, Meter.AUDIO_SECOND: 1_000_000}, 0, None)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    # A second of eight bits at 1,000 Hz.
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 1_000, 1_000, 1, 8)
    raw = b"RIFF\0\0\0\0WAVE" + fmt + b"data" + struct.pack("<I", 1_000) + bytes(1_000)
    sound = {"type": "input_audio", "input_audio": {"data": b64encode(raw).decode(), "format": "wav"}}
    request = ask(messages=[{"role": "user", "content": [image, image, sound]}], max_tokens=1)
    planned = plan(request, endpoint(), card)
    assert planned.quote.fixed_nanos == 2 * 2_000 + 1
    assert planned.tokens_estimated < 200
    assert plan(request, endpoint(), card, discount_bps=2_500).quote.fixed_nanos == 3_001


def test_audio_without_a_length_is_refused_only_where_it_costs() -> None:
    """400 names the piece; an endpoint that takes nothing for audio passes it on."""
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
    request = ask(messages=[{"role": "user", "content": [sound]}], max_tokens=1)
    plan(request, endpoint(), CARD)
    plan(request, endpoint(), PriceCard("pc", "ep", {Meter.AUDIO_SECOND: 0, Meter.REQUEST: 1}, 0, None))
    with pytest.raises(Refused) as caught:
        plan(request, endpoint(), PriceCard("pc", "ep", {Meter.AUDIO_SECOND: 1}, 0, None))
    error = caught.value.error
    assert (error.status, error.code, error.param) == (400, "unreadable_audio", "messages[0].content[0].input_audio")


def test_a_clamp_is_told_to_the_engine() -> None:
    """Credit for fewer tokens than wanted becomes the engine's max_tokens, and fits beside the prompt."""
    named, unnamed = ask(max_tokens=300), ask()
    assert upstream_max_tokens(named, plan(named, endpoint(), CARD), 7) == 7
    planned = plan(unnamed, endpoint(context=120, output=120), CARD)
    assert upstream_max_tokens(unnamed, planned, 119) == planned.room < 119


def test_max_tokens_over_the_context_is_refused_before_any_hold() -> None:
    """400 context_length_exceeded names what to change."""
    with pytest.raises(Refused) as caught:
        plan(ask(max_tokens=1001), endpoint(), CARD)
    assert caught.value.error.code == "context_length_exceeded"


def test_embeddings_want_no_completion_tokens() -> None:
    """Their hold is the prompt alone, once per input at most a context."""
    planned = plan(ask(Kind.EMBEDDING), endpoint(context=3), CARD)
    assert planned.tokens_wanted == 0
    assert planned.quote.fixed_nanos == 2 * 3
    assert planned.quote.completion_rate_per_million_nanos == 0


@dataclass
class Open:
    outstanding: int
    waiting: int = 0


def test_the_least_loaded_replica_is_chosen_and_ties_go_round() -> None:
    """Fewest requests first, of ours and of its own queue; equal ones take turns."""
    assert least_outstanding([Open(3), Open(1), Open(2)], 0).outstanding == 1
    assert least_outstanding([Open(1, waiting=5), Open(3), Open(4)], 0).outstanding == 3
    equal = [Open(0), Open(0), Open(0)]
    assert {id(least_outstanding(equal, turn)) for turn in range(3)} == {id(one) for one in equal}


def failure(code: FailureCode, phase: Phase = Phase.HEAD) -> BackendFailure:
    return BackendFailure(code, phase)


def test_the_breaker_closes_at_once_when_nobody_listens() -> None:
    """One refused connection is enough; one good probe opens again, and then one bad answer closes."""
    breaker = Breaker()
    breaker.failed(failure(FailureCode.UNREACHABLE, Phase.CONNECT))
    assert not breaker.is_up
    breaker.probed(True)
    assert breaker.is_up
    breaker.failed(failure(FailureCode.BROKEN))
    assert not breaker.is_up


def test_the_breaker_needs_several_bad_answers_in_a_row() -> None:
    """Single failures pass; a good answer between them starts the count anew."""
    breaker = Breaker()
    for _ in range(10):
        for _ in range(STRIKES_TO_CLOSE - 1):
            breaker.failed(failure(FailureCode.BROKEN))
        breaker.answered()
    assert breaker.is_up
    for _ in range(STRIKES_TO_CLOSE):
        breaker.failed(failure(FailureCode.BROKEN))
    assert not breaker.is_up


def test_the_callers_faults_and_a_full_queue_never_close_it() -> None:
    """A replica that refuses bad input, or that is full, is healthy."""
    breaker = Breaker()
    for code in (FailureCode.INPUT_REFUSED, FailureCode.CONTEXT_LENGTH, FailureCode.OVERLOADED):
        for _ in range(10):
            breaker.failed(failure(code))
    assert breaker.is_up


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b"This model's maximum context length is 8192 tokens", FailureCode.CONTEXT_LENGTH),
        (400, b"bad temperature", FailureCode.INPUT_REFUSED),
        (422, b"", FailureCode.INPUT_REFUSED),
        (429, b"", FailureCode.OVERLOADED),
        (503, b"", FailureCode.OVERLOADED),
        (504, b"", FailureCode.TIMEOUT),
        (500, b"", FailureCode.BROKEN),
        (401, b"", FailureCode.MISCONFIGURED),
        (404, b"", FailureCode.MISCONFIGURED),
        (302, b"", FailureCode.MISCONFIGURED),
    ],
)
def test_an_engines_refusal_is_understood(status: int, body: bytes, code: FailureCode) -> None:
    """Each status of an engine has one meaning for us."""
    assert refusal(status, body, None).code is code


def test_retry_after_is_read_as_seconds() -> None:
    """A number is taken, a date or nonsense is not."""
    assert refusal(429, b"", "7").retry_after_s == 7
    assert refusal(429, b"", "Wed, 21 Oct 2026 07:28:00 GMT").retry_after_s is None
    assert refusal(429, b"", "-1").retry_after_s is None
