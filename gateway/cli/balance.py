"""An organization's credit as it stands this moment: the books in Postgres and the counter in Redis, put together.

Floor: cli. The counter is ahead of the books by what the reconciler has not booked yet.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.cli.output import money
from gateway.cli.place import Place
from ledger.books.ledger import Credit, Ledger
from ledger.counter.values import AccountState, CounterUnavailable
from ledger.errors import UnknownAccount

if TYPE_CHECKING:
    from ledger.counter import CreditCounter


@asynccontextmanager
async def open_counter(place: Place, ledger: Ledger) -> AsyncIterator[CreditCounter]:
    """The counter in Redis, at the ledger's epoch.

    Raises:
        CounterUnavailable: no Redis is known.
    """
    settings = place.settings
    if not settings.redis_url:
        raise CounterUnavailable("unreachable", "no Redis is known; give --redis-url")
    from ledger.counter import CreditCounter  # late: the driver takes as long to import as all the rest

    counter = await CreditCounter.connect(
        settings.redis_url,
        shards=settings.shards,
        epoch=await ledger.epochs(settings.shards),
        timeout_s=settings.redis_timeout_s,
    )
    try:
        yield counter
    finally:
        await counter.close()


async def credit_record(place: Place, ledger: Ledger, org_id: str) -> dict[str, Any]:
    """Paid in, left, available now, held by running requests, frozen after a loss of Redis, spent.

    ``as_of`` is ``counter`` when Redis was asked, ``books`` when only Postgres could be: then what the reconciler has
    not booked yet is missing, and so is what is held.
    """
    books = await _books(ledger, org_id)
    pending = await ledger.pending_grants(org_id)
    account = await _account(place, ledger, org_id)
    if account is None:
        available, held = books.available_nanos + books.escrow_nanos, 0
    else:
        on_the_way = sum(grant.amount_nanos for grant in pending if grant.grant_seq > account.grant_seq)
        on_the_way += max(0, account.returned_nanos - books.returned_nanos)  # on its way back to Postgres
        available, held = books.available_nanos + on_the_way + account.available_nanos, account.held_nanos
    left = available + held + books.frozen_nanos
    return {
        "org_id": org_id,
        **money("paid_in", books.topped_up_nanos),
        **money("left", left),
        **money("available", available),
        **money("held", held),
        **money("frozen", books.frozen_nanos),
        **money("spent", books.topped_up_nanos - left),
        **money("booked", books.charged_nanos),
        "top_ups": books.top_ups,
        "as_of": "books" if account is None else "counter",
    }


async def _books(ledger: Ledger, org_id: str) -> Credit:
    """The booked credit; an organization whose accounts were not opened yet has nothing."""
    try:
        return await ledger.credit(org_id)
    except UnknownAccount:
        return Credit(
            org_id=org_id,
            topped_up_nanos=0,
            available_nanos=0,
            escrow_nanos=0,
            charged_nanos=0,
            pending_grant_nanos=0,
            top_ups=0,
        )


async def _account(place: Place, ledger: Ledger, org_id: str) -> AccountState | None:
    """The account in Redis, if Redis is there and belongs to these books."""
    try:
        async with open_counter(place, ledger) as counter:
            shard = counter.shard_of(org_id)
            meta = await counter.meta(shard)
            if meta is None or meta.epoch != counter.epoch_of(shard):
                return None
            return await counter.account(org_id)
    except CounterUnavailable:
        return None
