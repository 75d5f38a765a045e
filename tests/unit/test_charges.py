"""What an ended exchange costs, and what the ledger is told of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.wire.failure import BackendFailure
from backends.wire.openai_answer import rebuild_answer
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, TokenUsage, read_usage
from gateway.core.estimate import plan
from gateway.core.exchange import Ending, Exchange
from gateway.core.openai import Ask, read_ask
from gateway.core.state import Endpoint, EndpointStatus, Key, Limits, Scope
from gateway.dataplane.admit import build_admission, duration, limit_headers
from gateway.dataplane.settle import Charge, build_settlement, meters_of
from gateway.dataplane.settle import charge_of as charge_in_context
from ledger.core.meters import Meter, UsageSource
from ledger.core.pricing import PriceCard
from ledger.counter import LimitState

TOKENS = PriceCard(
    "pc_t", "ep", {Meter.PROMPT: 1_000_000, Meter.CACHED_PROMPT: 500_000, Meter.COMPLETION: 4_000_000}, 0, None
)
FLAT = PriceCard("pc_f", "ep", {Meter.REQUEST: 2_100_000}, 0, None)


def charge_of(ending: Ending, observed: Observed, card: PriceCard, ask: Ask) -> Charge:
    return charge_in_context(ending, observed, card, ask, context_tokens=1000)


def ask(*, stream: bool = True, **fields: Any) -> Ask:
    body = {"model": "ep", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **fields}
    return read_ask(Kind.CHAT, json.dumps(body).encode())


def seen(prompt: int, completion: int, deltas: int, **details: int) -> Observed:
    return Observed(TokenUsage(prompt, completion, **details), deltas)


def test_a_finished_answer_costs_its_usage() -> None:
    """Prompt, cached prompt and completion each at their own rate, exactly."""
    charge = charge_of(Ending.FINISHED, seen(10, 5, 5, cached_prompt=4), TOKENS, ask())
    assert charge.amount_nanos == 6 * 1 + 2 + 5 * 4
    assert charge.source is UsageSource.REPORTED


@pytest.mark.parametrize("card", [TOKENS, FLAT])
def test_failed_work_costs_nothing(card: PriceCard) -> None:
    """Whatever was delivered before the backend or we failed."""
    assert charge_of(Ending.FAILED, seen(10, 5, 5), card, ask()).amount_nanos == 0


def test_an_abandoned_stream_costs_what_was_delivered() -> None:
    """Token prices: prompt and delivered tokens. Flat price: whole, once one content delta was delivered."""
    assert charge_of(Ending.ABANDONED, seen(10, 3, 3), TOKENS, ask()).amount_nanos == 10 + 12
    assert charge_of(Ending.ABANDONED, seen(10, 3, 3), FLAT, ask()).amount_nanos == 2_100_000
    for card in (TOKENS, FLAT):
        assert charge_of(Ending.ABANDONED, seen(10, 0, 0), card, ask()).amount_nanos == 0


def test_an_abandoned_whole_answer_was_never_delivered() -> None:
    """Nobody pays for an answer that could not be given."""
    assert charge_of(Ending.ABANDONED, seen(10, 5, 1), TOKENS, ask(stream=False)).amount_nanos == 0


def test_without_a_report_deltas_are_counted_and_said_to_be() -> None:
    """An engine that reports no usage is billed low: a token a delta, four bytes of prompt a token."""
    request = ask()
    charge = charge_of(Ending.FINISHED, Observed(None, 7), TOKENS, request)
    assert charge.meters[Meter.COMPLETION] == 7
    assert charge.meters[Meter.PROMPT] == request.body_bytes // 4
    assert charge.source is UsageSource.COUNTED
    whole = charge_of(Ending.FINISHED, Observed(None, 1), TOKENS, ask(stream=False))
    assert whole.source is UsageSource.ESTIMATED


def test_a_report_of_zero_beside_content_is_no_report() -> None:
    """An engine that delivered text and reports zero tokens is not believed."""
    assert charge_of(Ending.FINISHED, seen(10, 0, 7), TOKENS, ask()).source is UsageSource.COUNTED


def test_images_and_audio_are_charged_once_anything_was_delivered() -> None:
    """A finished answer and one abandoned in the middle cost what came along; before the first content nothing does."""
    card = PriceCard("pc_m", "ep", {Meter.IMAGE: 3_000_000, Meter.COMPLETION: 1_000_000}, 0, None)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    request = ask(messages=[{"role": "user", "content": [image, image]}])
    for ending, amount in ((Ending.FINISHED, 11), (Ending.LENGTH, 11), (Ending.ABANDONED, 11), (Ending.FAILED, 0)):
        charge = charge_of(ending, seen(10, 5, 5), card, request)
        assert charge.amount_nanos == amount
        assert charge.meters.get(Meter.IMAGE, 0) == (2 if amount else 0)
    assert charge_of(Ending.ABANDONED, seen(10, 0, 0), card, request).amount_nanos == 0


def test_a_free_answer_is_metered() -> None:
    """With everything off the charge is 0, and what was used is known as ever."""
    charge = charge_in_context(Ending.FINISHED, seen(10, 5, 5), TOKENS, ask(), context_tokens=1000, discount_bps=10_000)
    assert charge.amount_nanos == 0
    assert charge.meters == {Meter.PROMPT: 10, Meter.COMPLETION: 5, Meter.REQUEST: 1}


@pytest.mark.parametrize("ending", [Ending.FINISHED, Ending.ABANDONED])
@pytest.mark.parametrize(("prompt", "completion"), [(1001, 5), (10, 1001), (2**31 - 1, 2**31 - 1)])
def test_a_report_of_more_than_the_context_is_no_report(ending: Ending, prompt: int, completion: int) -> None:
    """An engine gone wrong cannot drain a customer's credit: what was passed on is counted instead."""
    charge = charge_of(ending, seen(prompt, completion, 5), TOKENS, ask())
    assert (charge.source, charge.meters[Meter.COMPLETION]) == (UsageSource.COUNTED, 5)
    assert charge_of(ending, seen(1000, 1000, 5), TOKENS, ask()).source is UsageSource.REPORTED


def test_meters_add_up_without_overlap() -> None:
    """Cached prompt is taken out of prompt, reasoning out of completion."""
    meters = meters_of(TokenUsage(10, 8, cached_prompt=4, reasoning=3))
    assert meters == {
        Meter.PROMPT: 6, Meter.CACHED_PROMPT: 4, Meter.COMPLETION: 5, Meter.REASONING: 3, Meter.REQUEST: 1,
    }  # fmt: skip


def test_an_engines_nonsense_is_cut_to_sense() -> None:
    """Negative, absurd or contradictory counts never reach a meter."""
    usage = read_usage({"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 99}})
    assert usage == TokenUsage(5, 2, cached_prompt=5)
    for bad in (
        None,
        [],
        {},
        {"prompt_tokens": -1},
        {"prompt_tokens": "5"},
        {"prompt_tokens": 1 << 40},
        {"prompt_tokens": True},
    ):
        assert read_usage(bad) is None


def exchange(limits: Limits) -> Exchange:
    found = Exchange("req_0" + "0" * 25, "/v1/chat/completions", 0.0, 1_700_000_000_000)
    found.kind = Kind.CHAT
    found.ask = ask(max_tokens=10)
    found.key = Key("k" * 24, "org_1", b"", Scope.FULL, None, False, limits, Limits(concurrent=5))
    found.endpoint = Endpoint(
        "ep", "org_1", "ep", "qwen-1", EndpointStatus.LIVE, 1000, 100, 60, 0, frozenset({"chat"}), (), (TOKENS,)
    )
    found.card = TOKENS
    return found


def test_limits_of_key_and_organization_are_taken_and_given_back() -> None:
    """The admission names every limit; the settlement gives unused tokens back to the same buckets.

    A bucket gets back what was taken from it and not used, not what the request was estimated at.
    """
    one = exchange(Limits(requests_per_minute=60, tokens_per_minute=1000))
    assert one.ask is not None
    assert one.endpoint is not None
    planned = plan(one.ask, one.endpoint, TOKENS)
    admission = build_admission(one, planned, b"{}", defaults=Limits(concurrent=2), expires_in_s=30)
    key = f"key:{'k' * 24}"
    assert [(rate.name, rate.per_minute) for rate in admission.rates] == [(f"{key}:rpm", 60), (f"{key}:tpm", 1000)]
    assert [(place.name, place.at_most) for place in admission.opens] == [(f"{key}:open", 2), ("org:org_1:open", 5)]
    one.token_buckets = ((f"{key}:tpm", planned.tokens_estimated), ("org:org_1:tpm", 5))
    one.open_places = (f"{key}:open", "org:org_1:open")
    one.ending = Ending.FINISHED
    charge = charge_of(Ending.FINISHED, seen(3, 4, 4), TOKENS, one.ask)
    settlement = build_settlement(one, charge)
    assert settlement.refunds == ((f"{key}:tpm", planned.tokens_estimated - 7),)
    assert settlement.opens == one.open_places
    info = json.loads(settlement.info)
    assert (info["card"], info["meters"], info["outcome"]) == (
        "pc_t",
        {"prompt": 3, "completion": 4, "request": 1},
        "finished",
    )


def test_limit_headers_are_openais() -> None:
    """Of each kind the tightest limit, with durations as OpenAI writes them."""
    states = (
        LimitState("key:a:rpm", 60, 59, 1.0),
        LimitState("org:b:rpm", 600, 5, 59.4),
        LimitState("key:a:open", 2, 1, 0),
    )
    assert limit_headers(states).decode().split("\r\n")[:3] == [
        "x-ratelimit-limit-requests: 600",
        "x-ratelimit-remaining-requests: 5",
        "x-ratelimit-reset-requests: 59.4s",
    ]
    assert [duration(seconds) for seconds in (0, 0.12, 1, 1.5, 360, 3661)] == [
        "0ms",
        "120ms",
        "1s",
        "1.5s",
        "6m0s",
        "61m1s",
    ]


def request(kind: Kind = Kind.CHAT) -> InferenceRequest:
    return InferenceRequest(kind, {}, False, False, "chatcmpl-1", 1, "ep_x")


def test_a_whole_answer_keeps_the_schema_and_nothing_else() -> None:
    """Ids and names are ours, extras are gone, null content becomes text unless tools are called."""
    raw = {
        "id": "engine", "model": "secret/model", "system_fingerprint": "fp", "prompt_logprobs": None,
        "choices": [{"message": {"role": "assistant", "content": None, "x": 1}, "finish_reason": "stop", "y": 5}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }  # fmt: skip
    body, observed = rebuild_answer(json.dumps(raw).encode(), request())
    answer = json.loads(body)
    assert answer["choices"] == [
        {"index": 0, "logprobs": None, "finish_reason": "stop", "message": {"role": "assistant", "content": ""}}
    ]
    assert (answer["id"], answer["model"]) == ("chatcmpl-1", "ep_x")
    assert b"secret" not in body
    assert observed.usage == TokenUsage(3, 2)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"error":{"message":"x"}}']
)
def test_what_is_no_answer_is_a_failure(raw: bytes) -> None:
    """An engine's 200 with something else in it is a failure that may be tried elsewhere."""
    with pytest.raises(BackendFailure) as caught:
        rebuild_answer(raw, request())
    assert not caught.value.is_callers_fault


def test_embeddings_are_rebuilt() -> None:
    """Vectors pass as they are, as lists or base64."""
    raw = {"data": [{"embedding": [0.5, 1.5], "object": "x"}, {"embedding": "AAAA"}], "usage": {"prompt_tokens": 4}}
    answer = json.loads(rebuild_answer(json.dumps(raw).encode(), request(Kind.EMBEDDING))[0])
    assert [row["embedding"] for row in answer["data"]] == [[0.5, 1.5], "AAAA"]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
