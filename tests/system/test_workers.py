"""Workers that die and workers that are told to go: nobody else notices, and no nano is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from uuid import uuid4

import pytest

from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from tests.services import PostgresService
from tests.system.harness import Gateway, Tenant, receipt_of, running_gateway
from tests.system.wire import Answer

RATES = {Meter.PROMPT: 150_000_001, Meter.COMPLETION: 600_000_007}


async def load(
    gateway: Gateway, tenant: Tenant, stop: asyncio.Event, answers: list[Answer], refused: list[str]
) -> None:
    """One client that asks again and again, streamed and not, until told to stop."""
    turn = 0
    while not stop.is_set():
        turn += 1
        try:
            sim = {"tokens": 15, "itl_ms": 10}
            answer = await gateway.chat(tenant, stream=turn % 3 > 0, sim=sim, tag=uuid4().hex)
        except (ConnectionError, OSError) as error:
            refused.append(type(error).__name__)
        else:
            answers.append(answer)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("slot", [0, 1])
async def test_kill_9_of_a_worker_under_load(gateway: Gateway, slot: int) -> None:
    """The others serve on, the supervisor starts it again, its holds are reaped, and the books balance to the nano."""
    tenant = await gateway.tenant(rates=RATES)
    before = await gateway.balance_nanos(tenant.org_id)
    stop = asyncio.Event()
    answers: list[Answer] = []
    refused: list[str] = []
    clients = [asyncio.create_task(load(gateway, tenant, stop, answers, refused)) for _ in range(24)]
    await asyncio.sleep(1.5)
    victim = gateway.signal_worker(slot, signal.SIGKILL)
    after_kill = len(answers)
    await asyncio.sleep(1.0)
    assert any(answer.ended == "whole" for answer in answers[after_kill:]), "the other worker serves on"
    await gateway.wait_worker(slot, other_than=victim)
    await asyncio.sleep(1.0)
    stop.set()
    await asyncio.gather(*clients)
    await gateway.wait_quiet()

    endings = Counter((answer.status, answer.ended) for answer in answers)
    print(endings, Counter(refused))
    assert set(endings) <= {(200, "whole"), (200, "eof"), (200, "reset"), (0, "eof"), (0, "reset")}, endings
    assert endings[200, "whole"] > 50
    charged = 0
    async with gateway.pool() as pool:
        ledger = Ledger(pool)
        for answer in answers:
            if answer.status != 200:
                continue
            receipt = await receipt_of(ledger, answer.request_id)
            charged += receipt.charged_nanos
            if answer.ended == "whole":
                assert (receipt.outcome, receipt.kind) in (("finished", "settle"), ("finished", "late")), receipt
                assert answer.billed_micros == receipt.charged_nanos // 1000
            else:
                assert receipt.charged_nanos <= receipt.held_nanos
        # Requests whose answer had no byte yet when the worker died are known only to the books.
        unseen = await pool.fetchval(
            "SELECT coalesce(sum(amount_nanos), 0) FROM ledger.usage_event WHERE org_id = $1 AND hold_id <> ALL($2)",
            tenant.org_id,
            [answer.request_id for answer in answers if answer.status == 200],
        )
    account = await gateway.account(tenant.org_id)
    assert before - await gateway.balance_nanos(tenant.org_id) == charged + unseen
    assert (account.held_nanos, account.spent_nanos) == (0, charged + unseen)
    await gateway.audit()


async def _served(gateway: Gateway, tenant: Tenant) -> Answer:
    """One answer, as clients get it: a connection that breaks before its first byte is tried again.

    What the kernel had queued for a leaving worker and the worker had not accepted is reset when its socket closes.
    """
    for _ in range(2):
        with contextlib.suppress(ConnectionError):
            answer = await gateway.chat(tenant, max_tokens=1)
            if answer.raw:
                return answer
    return await gateway.chat(tenant, max_tokens=1)


async def test_sigterm_lets_a_worker_finish_its_streams(gateway: Gateway) -> None:
    """A worker that is told to go ends no stream early; new connections meet another one, or its successor."""
    tenant = await gateway.tenant(rates={Meter.COMPLETION: 1_000_000_000})
    sim = {"tokens": 60, "itl_ms": 30}
    streams = [asyncio.create_task(gateway.chat(tenant, stream=True, sim=sim)) for _ in range(16)]
    await asyncio.sleep(0.8)
    gone = gateway.signal_worker(0, signal.SIGTERM)
    served = [await _served(gateway, tenant) for _ in range(12)]
    assert [answer.status for answer in served] == [200] * 12
    for answer in await asyncio.gather(*streams):
        assert answer.events[-1] == "[DONE]"
        assert (await gateway.receipt(answer.request_id)).charged_nanos == 60_000
    await gateway.wait_worker(0, other_than=gone)
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).spent_nanos == 16 * 60_000 + 12 * 1_000


@pytest.mark.timeout(200)
async def test_the_whole_gateway_drains_and_comes_back(postgres_service: PostgresService) -> None:
    """SIGTERM to all: streams end with [DONE], what outlasts the drain costs nothing, exit 0; the next run goes on."""
    with running_gateway(postgres_service, simulators=1, drain_timeout_s=2.0) as gateway:
        tenant = await gateway.tenant(flat_nanos=5_003)
        short = [asyncio.create_task(gateway.chat(tenant, stream=True, sim={"tokens": 30, "itl_ms": 40})) for _ in "ab"]
        endless = asyncio.create_task(gateway.chat(tenant, stream=True, sim={"tokens": 3000, "itl_ms": 40}))
        await asyncio.sleep(0.5)
        stopping = gateway.begin_stop()
        await asyncio.sleep(0.3)
        with pytest.raises(ConnectionError):
            await gateway.chat(tenant)
        for answer in await asyncio.gather(*short):
            assert answer.events[-1] == "[DONE]"
        broken = await endless
        assert broken.chunks[-1]["error"]["code"] == "overloaded"
        assert broken.ended in ("eof", "reset")
        assert await stopping == 0
        gateway.start()
        assert (await gateway.chat(tenant)).status == 200
        await gateway.wait_quiet()
        assert (await gateway.account(tenant.org_id)).spent_nanos == 3 * 5_003
        assert (await gateway.receipt(broken.request_id)).charged_nanos == 0
        await gateway.audit()
