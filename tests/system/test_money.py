"""Money on the whole stack: exact to the nano, whatever clients, engines and workers do."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from tests.system.harness import Gateway, Tenant, chat_body, receipt_of
from tests.system.wire import Answer, ask, connected, read_answer, request_bytes

REQUESTS = 2_000
AT_ONCE = 250
RATES = {
    Meter.PROMPT: 150_000_001,
    Meter.CACHED_PROMPT: 75_000_003,
    Meter.COMPLETION: 600_000_007,
    Meter.REQUEST: 1_013,
}
FLAT_NANOS = 40_009

PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}
HARMLESS = ["crlf", "space_newlines", "comments", "no_done", "no_final_chunk", "coalesced", "close_after_answer"]
SILENT = ["no_usage", "bad_usage"]
FATAL = [
    *("close_mid_stream", "reset_mid_stream", "error_event", "malformed_chunk", "giant_event", "hang_mid_stream"),
    *("400", "500", "502", "html", "empty", "close_before_head", "reset_before_head", "hang_before_head"),
]
PASSING = [
    *("429", "500", "502", "503", "html"),
    *("refuse", "close_before_head", "reset_before_head", "close_when_reused"),
]


def price_nanos(*, prompt: int, completion: int, cached: int = 0) -> int:
    """What a request costs, worked out here and nowhere else: whole nanos, rounded up once."""
    millionths = (prompt - cached) * 150_000_001 + cached * 75_000_003 + completion * 600_000_007
    return 1_013 + (millionths + 999_999) // 1_000_000


@dataclass
class Shot:
    """One request of the load: what is asked, when its client leaves, and what came of it."""

    tenant: Tenant
    is_flat: bool
    kind: str
    stream: bool
    body: dict[str, Any]
    tag: str
    fault: str | None
    cached: int
    leave_after_deltas: int | None = None
    leave_after_s: float | None = None
    answer: Answer | None = None

    @property
    def is_guessed(self) -> bool:
        """Whether the engine says nothing of its usage; a bad last word of a stream leaves the words before it."""
        return self.fault == "no_usage" or (self.fault == "bad_usage" and not self.stream)

    @property
    def leaves(self) -> bool:
        return self.leave_after_deltas is not None or self.leave_after_s is not None


@dataclass
class Load:
    """Draws requests from a seed."""

    rng: random.Random
    tenants: list[tuple[Tenant, bool]]
    counts: Counter[str] = field(default_factory=Counter)

    def draw(self) -> Shot:
        rng = self.rng
        tenant, is_flat = rng.choice(self.tenants)
        kind = rng.choices(["chat", "completion", "embedding"], [80, 12, 8])[0]
        stream = kind != "embedding" and rng.random() < 0.6
        tag = uuid4().hex
        cached = rng.choice([0, 0, 3])
        sim: dict[str, Any] = {"tokens": rng.randint(1, 25), "itl_ms": rng.choice([0, 1, 4]), "cached_tokens": cached}
        words = "word " * rng.randint(1, 40)
        body: dict[str, Any] = {"model": tenant.endpoint_id, "tag": tag}
        if kind == "chat":
            body |= {"messages": [{"role": "user", "content": words}], "stream": stream}
        elif kind == "completion":
            body |= {"prompt": words, "stream": stream, "max_tokens": rng.randint(1, 30)}
        else:
            body |= {"input": [words, "another"]}
        fault = None
        if kind != "embedding":
            dice = rng.random()
            fault = rng.choice(FATAL) if dice < 0.12 else rng.choice(HARMLESS + SILENT) if dice < 0.3 else None
            if fault:
                sim |= {"fail": fault, "after_tokens": rng.randint(0, 4)}
            body["sim"] = sim
            if rng.random() < 0.3:
                body["max_tokens"] = rng.randint(1, 12)
        shot = Shot(tenant, is_flat, kind, stream, body, tag, fault, cached if kind != "embedding" else 0)
        if kind != "embedding" and rng.random() < 0.2:
            if stream and rng.random() < 0.7:
                shot.leave_after_deltas = rng.randint(1, 10)
            else:
                shot.leave_after_s = rng.uniform(0, 0.05)
        return shot


async def fire(gateway: Gateway, shot: Shot) -> None:
    """Send one request; hang up where it says so."""
    path, headers = PATHS[shot.kind], {"x-request-id": shot.tag}
    if shot.leave_after_s is not None:
        data = request_bytes("POST", path, key=shot.tenant.key, body=shot.body, headers=headers)
        async with connected(gateway.settings.port) as (_, writer):
            writer.write(data)
            await asyncio.sleep(shot.leave_after_s)
        return
    leave_after = shot.leave_after_deltas
    shot.answer = await ask(
        gateway.settings.port,
        "POST",
        path,
        key=shot.tenant.key,
        body=shot.body,
        headers=headers,
        leave_when=None if leave_after is None else lambda partial: partial.body.count(b'data: {"id"') > leave_after,
    )


@pytest.mark.timeout(240)
async def test_two_thousand_mixed_requests_balance_to_the_nano(gateway: Gateway) -> None:
    """Streams and not, flat and per token, hang-ups anywhere, every backend failure: the books agree with everyone.

    Each charge is recomputed from what the simulator says it delivered; balance before - after = sum of receipts.
    """
    seed = int(os.environ.get("TEST_SEED", "0")) or time.time_ns() % 2**32
    print(f"seed {seed}")
    by_token = await gateway.tenant(rates=RATES, deadline_s=6.0)
    flat = await gateway.tenant(flat_nanos=FLAT_NANOS, deadline_s=6.0)
    load = Load(random.Random(seed), [(by_token, False), (flat, True)])
    shots = [load.draw() for _ in range(REQUESTS)]
    for number in range(2):
        await gateway.sim(number, "DELETE", "/sim/requests")
    # Failures that another replica makes good; the first plan that fires takes the request.
    await gateway.faults(*({"fail": fault, "probability": 0.01} for fault in PASSING))
    before = {t.org_id: await gateway.balance_nanos(t.org_id) for t in (by_token, flat)}
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(shot: Shot) -> None:
        async with gate:
            await fire(gateway, shot)

    await asyncio.gather(*map(one, shots))
    await gateway.faults()
    await gateway.wait_quiet()

    lines = await log_lines_of(gateway, shots)
    records: dict[str, list[dict[str, Any]]] = {}
    for record in await gateway.sim_records():
        if "tag" in record["body"]:
            records.setdefault(record["body"]["tag"], []).append(record)
    outcomes: Counter[str] = Counter()
    charged = Counter[str]()
    async with gateway.pool() as pool:
        ledger = Ledger(pool)
        for shot in shots:
            line = lines.get(shot.tag)
            if line is None:  # the client had left before its request was read
                assert shot.leave_after_s is not None
                continue
            if "held_nanos" not in line:
                assert line["status"] != 200
                outcomes[f"refused {line.get('error')}"] += 1
                continue
            receipt = await receipt_of(ledger, line["request_id"])
            assert receipt.org_id == shot.tenant.org_id
            charged[receipt.org_id] += receipt.charged_nanos
            outcomes[f"{receipt.outcome} {receipt.source}"] += 1
            check_charge(shot, receipt, records.get(shot.tag, []))
    print(dict(outcomes))
    assert outcomes["finished reported"] > REQUESTS / 3, "most requests must have gone well, or this proves little"
    assert sum(n for name, n in outcomes.items() if name.startswith("abandoned")) > 20
    assert sum(n for name, n in outcomes.items() if name.startswith("failed")) > 20
    for tenant in (by_token, flat):
        org_id = tenant.org_id
        account = await gateway.account(org_id)
        assert before[org_id] - await gateway.balance_nanos(org_id) == charged[org_id]
        assert (account.held_nanos, account.spent_nanos) == (0, charged[org_id])
        left_nanos = account.granted_nanos - account.returned_nanos - charged[org_id]
        assert account.available_nanos == left_nanos
    report = await gateway.audit()
    assert report.usage_events > REQUESTS / 2
    await gateway.audit_by_command()


async def log_lines_of(gateway: Gateway, shots: list[Shot]) -> dict[str, dict[str, Any]]:
    """The log lines by the client's own request id; the log is written twice a second."""
    async with asyncio.timeout(10):
        while True:
            lines = {str(line.get("client_request_id")): line for line in gateway.log_lines().values()}
            if all(shot.tag in lines for shot in shots if shot.answer is not None):
                return lines
            await asyncio.sleep(0.2)


def check_charge(shot: Shot, receipt: Any, records: list[dict[str, Any]]) -> None:
    """A receipt against what the client saw and what the simulator says it delivered."""
    told = f"{shot} {receipt} {records}"
    assert receipt.shortfall_nanos == 0, told
    assert receipt.charged_nanos <= receipt.held_nanos, told
    assert sum(transfer.amount_nanos for transfer in receipt.transfers) == receipt.charged_nanos, told
    whole = shot.answer is not None and shot.answer.status == 200 and shot.answer.ended in ("whole", "left")
    quantities = {line.meter: line.quantity for line in receipt.lines}
    served = [record for record in records if record["state"] in ("finished", "cancelled")]
    if receipt.outcome == "failed":
        assert receipt.charged_nanos == 0, told
        assert not (whole and not shot.leaves), told
        return
    if receipt.outcome == "finished":
        if shot.answer is not None and shot.answer.ended == "whole":
            assert shot.answer.billed_micros == receipt.charged_nanos // 1000, told
        # A replica that was silent for too long was left for another one, and is none of the client's business.
        candidates = [record for record in served if record["state"] == "finished"] or served
        assert candidates, told
        if shot.is_guessed:
            check_guess(shot, receipt, quantities)
            return
    else:
        assert receipt.outcome == "abandoned", told
        assert shot.leaves, told
        if not shot.stream or receipt.charged_nanos == 0:
            assert receipt.charged_nanos == 0, told
            if shot.answer is not None:
                assert shot.answer.deltas == 0, told
            return
        completion = quantities[Meter.COMPLETION]
        candidates = [record | {"completion_tokens": completion} for record in records]
        assert completion <= max(record["completion_tokens"] for record in records), told
        if shot.answer is not None:
            assert completion >= shot.answer.deltas, told
        if shot.is_guessed:
            check_guess(shot, receipt, quantities)
            return
    assert receipt.source == "reported", told
    # Engines tell of their cache at the end of a stream only, and not every stream has one.
    untold = Meter.CACHED_PROMPT not in quantities and (receipt.outcome == "abandoned" or shot.fault == "bad_usage")
    expected = {
        price_nanos(
            prompt=record["prompt_tokens"],
            completion=record["completion_tokens"],
            cached=0 if untold else min(shot.cached, record["prompt_tokens"]),
        )
        for record in candidates
    }
    assert receipt.charged_nanos in ({FLAT_NANOS} if shot.is_flat else expected), told


def check_guess(shot: Shot, receipt: Any, quantities: dict[Meter, int]) -> None:
    """An engine that says nothing of usage: a low guess of the prompt, and the deltas that were passed on."""
    assert receipt.source == ("counted" if shot.stream else "estimated")
    assert quantities[Meter.PROMPT] == len(json.dumps(shot.body)) // 4
    if shot.stream and shot.answer is not None and shot.answer.ended == "whole":
        assert quantities[Meter.COMPLETION] == shot.answer.deltas
    expected = price_nanos(prompt=quantities[Meter.PROMPT], completion=quantities[Meter.COMPLETION])
    assert receipt.charged_nanos == (FLAT_NANOS if shot.is_flat else expected)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rates", [{Meter.REQUEST: 7_001}, {Meter.COMPLETION: 700_100_000}], ids=["flat", "token"])
async def test_credit_for_ten_serves_ten_of_fifty(gateway: Gateway, rates: dict[Meter, int], stream: bool) -> None:
    """Fifty at once, credit for exactly ten: ten succeed, forty get 402, nothing is negative, nothing is left."""
    price = 7_001  # per request, or for ten tokens
    tenant = await gateway.tenant(rates=rates, credit_nanos=10 * price)
    sim = {"tokens": 20, "ttft_ms": 400}
    answers = await asyncio.gather(
        *(gateway.chat(tenant, stream=stream, max_tokens=10, sim=sim, tag="fifty") for _ in range(50))
    )
    assert Counter(answer.status for answer in answers) == {200: 10, 402: 40}
    assert {answer.code for answer in answers if answer.status == 402} == {"insufficient_credits"}
    await gateway.wait_quiet()
    account = await gateway.account(tenant.org_id)
    assert (account.available_nanos, account.held_nanos, account.spent_nanos) == (0, 0, 10 * price)
    assert await gateway.balance_nanos(tenant.org_id) == 0
    assert (await gateway.chat(tenant)).status == 402
    await gateway.top_up(tenant.org_id, price)
    assert (await gateway.chat(tenant, max_tokens=10, sim=sim)).status == 200


async def test_credit_that_was_only_held_comes_back(gateway: Gateway) -> None:
    """Holds for dear answers that turn out cheap, and for failed ones, free their credit for the next request."""
    tenant = await gateway.tenant(rates={Meter.COMPLETION: 1_000_000_000}, credit_nanos=1_000_000)
    for _ in range(5):  # each holds all the credit there is, and uses 1 % of it
        answer = await gateway.chat(tenant, max_tokens=1_000, sim={"tokens": 10})
        assert answer.status == 200
        await gateway.wait_quiet()
    assert (await gateway.chat(tenant, max_tokens=1_000, sim={"fail": "empty"})).status == 502
    await gateway.wait_quiet()
    account = await gateway.account(tenant.org_id)
    assert (account.available_nanos, account.held_nanos, account.spent_nanos) == (950_000, 0, 50_000)


async def test_max_tokens_is_cut_to_what_is_affordable(gateway: Gateway) -> None:
    """Credit for seven tokens and a wish for a hundred: seven tokens, finish_reason length, and then 402."""
    tenant = await gateway.tenant(rates={Meter.COMPLETION: 1_000_000_000}, credit_nanos=7_000)
    answer = await gateway.chat(tenant, max_tokens=100, sim={"tokens": 50})
    assert answer.json["usage"]["completion_tokens"] == 7
    assert answer.json["choices"][0]["finish_reason"] == "length"
    await gateway.wait_quiet()
    assert (await gateway.chat(tenant, max_tokens=100)).status == 402


async def test_a_price_change_does_not_touch_what_runs(gateway: Gateway) -> None:
    """A stream pays the card under which it began; the next request pays the new one."""
    tenant = await gateway.tenant(rates={Meter.COMPLETION: 1_000_000})
    running = asyncio.create_task(gateway.chat(tenant, stream=True, sim={"tokens": 40, "itl_ms": 40}))
    await asyncio.sleep(0.5)
    dearer = await gateway.price(tenant.endpoint_id, {Meter.COMPLETION: 900_000_000})
    async with asyncio.timeout(10):
        while True:
            answer = await gateway.chat(tenant, max_tokens=4, sim={"tokens": 9})
            receipt = await gateway.receipt(answer.request_id)
            if receipt.price_card_id == dearer.id:
                break
    assert receipt.charged_nanos == 4 * 900
    assert not running.done(), "the change has to come while the stream runs"
    first = await gateway.receipt((await running).request_id)
    assert tenant.card is not None
    assert first.price_card_id == tenant.card.id
    assert first.charged_nanos == 40


async def test_an_abandoned_stream_pays_what_was_delivered(gateway: Gateway) -> None:
    """Per token: the prompt and the delivered tokens. Flat: the whole price, once the first delta was out."""
    by_token = await gateway.tenant(rates=RATES)
    flat = await gateway.tenant(flat_nanos=FLAT_NANOS)
    for tenant in (by_token, flat):
        tag = uuid4().hex
        answer = await leave_after_five(gateway, tenant, tag)
        record = await gateway.sim_record(tag=tag, state="cancelled")
        receipt = await gateway.receipt(answer.request_id)
        assert receipt.outcome == "abandoned"
        completion = {line.meter: line.quantity for line in receipt.lines}[Meter.COMPLETION]
        assert answer.deltas <= completion <= record["completion_tokens"] < 50
        if tenant is flat:
            assert receipt.charged_nanos == FLAT_NANOS
        else:
            assert receipt.charged_nanos == price_nanos(prompt=record["prompt_tokens"], completion=completion)


async def leave_after_five(gateway: Gateway, tenant: Tenant, tag: str) -> Answer:
    """Read five deltas of a long stream and hang up."""
    body = chat_body(tenant, stream=True, tag=tag, sim={"tokens": 500, "itl_ms": 25})
    async with connected(gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("POST", PATHS["chat"], key=tenant.key, body=body))
        return await read_answer(reader, leave_when=lambda seen: seen.deltas >= 5)


async def test_the_counter_away_is_503_and_never_a_gift(gateway: Gateway) -> None:
    """While Redis does not answer no work begins; what ran through it is charged when it is back."""
    tenant = await gateway.tenant(flat_nanos=FLAT_NANOS)
    running = asyncio.create_task(gateway.chat(tenant, stream=True, sim={"tokens": 60, "itl_ms": 25}))
    await asyncio.sleep(0.5)
    gateway.pause_redis()
    try:
        answer = await gateway.chat(tenant, tag="no counter")
        assert (answer.status, answer.code) == (503, "ledger_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
    finally:
        gateway.resume_redis()
    assert (await running).events[-1] == "[DONE]"
    assert await gateway.sim_records(tag="no counter") == []
    await gateway.wait_quiet()
    account = await gateway.account(tenant.org_id)
    assert (account.held_nanos, account.spent_nanos) == (0, FLAT_NANOS)
