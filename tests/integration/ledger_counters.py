"""What the tests of the credit counter share."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledger.core.pricing import Quote
from ledger.counter import Admission, CreditCounter, OpenLimit, RateLimit, Settlement

ORG = "org_aaaaaaaaaaaa"
_numbers = itertools.count(1)


def admission(
    hold_id: str = "",
    *,
    org: str = ORG,
    fixed: int = 100,
    rate: int = 0,
    tokens: int = 0,
    expires_in_s: float = 30.0,
    rates: tuple[RateLimit, ...] = (),
    opens: tuple[OpenLimit, ...] = (),
    fingerprint: str = "f",
    info: bytes = b'{"key":"k"}',
) -> Admission:
    """An admission with an id of its own unless one is given."""
    hold_id = hold_id or f"req_{next(_numbers):026d}"
    return Admission(hold_id, org, fingerprint, Quote(fixed, rate), tokens, expires_in_s, rates, opens, info)


def end(
    hold_id: str,
    amount: int = 0,
    *,
    org: str = ORG,
    refunds: tuple[tuple[str, int], ...] = (),
    opens: tuple[str, ...] = (),
) -> Settlement:
    """The end of a hold."""
    return Settlement(hold_id, org, amount, refunds, opens, b'{"outcome":"finished"}')


@asynccontextmanager
async def opened(
    url: str, *, grant: int = 0, shards: int = 1, epoch: int = 1, timeout_s: float = 2.0
) -> AsyncIterator[CreditCounter]:
    """A counter on a Redis that it opens if it is new; with ``grant`` the organization has credit."""
    counter = await CreditCounter.connect(url, shards=shards, epoch=epoch, timeout_s=timeout_s)
    try:
        await counter.begin_epoch()
        if grant:
            await counter.grant(ORG, 1, grant)
        yield counter
    finally:
        await counter.close()
