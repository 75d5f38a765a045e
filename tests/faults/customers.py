"""Who sends the load: organizations with keys, an endpoint, prices and money, and an exact note of what they paid."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.control import endpoints, keys, organizations
from gateway.control.database import new_id, session
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.core.state import EndpointStatus
from ledger.books.database import open_pool
from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from ledger.errors import LedgerError, LedgerUnavailable

USD = 1_000_000_000
MODEL = "sim-8b"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Card:
    """A price as this suite set it: nano-USD per million tokens, of ``request`` per request."""

    id: str
    endpoint_id: str
    rates: Mapping[str, int]
    from_ms: int


@dataclass(frozen=True, slots=True)
class Payment:
    """Credit that was paid in. ``begun_s``: when it was first tried; ``done_s``: when it was confirmed."""

    amount_nanos: int
    begun_s: float
    done_s: float


@dataclass(slots=True)
class Customer:
    """One organization."""

    name: str
    org_id: str
    endpoint_id: str
    flat_nanos: int | None
    """Its price per request; None: tokens are priced."""
    keys: list[str] = field(default_factory=list)
    key_ids: list[str] = field(default_factory=list)
    cards: dict[str, Card] = field(default_factory=dict)
    payments: list[Payment] = field(default_factory=list)

    @property
    def paid_nanos(self) -> int:
        return sum(payment.amount_nanos for payment in self.payments)

    @property
    def card(self) -> Card:
        """The latest."""
        return max(self.cards.values(), key=lambda card: card.from_ms)


@dataclass(slots=True)
class Register:
    """Makes customers; talks to Postgres directly or, for payments, by the way the operator would."""

    direct_url: str
    public_url: str
    """The same database through the proxy: a payment meets every outage, and is repeated under its key."""
    backends: list[str]
    customers: list[Customer] = field(default_factory=list)

    async def add(
        self, name: str, *, rates: Mapping[Meter, int], keys_wanted: int, credit_nanos: int, deadline_s: float = 40.0
    ) -> Customer:
        """A new organization, its endpoint, price, keys and first payment."""
        endpoint_id = new_id("ep")
        async with session(self.direct_url) as conn:
            made, _ = await organizations.create(conn, f"Faults {name} {next(_numbers)}", None)
        flat = rates.get(Meter.REQUEST) if set(rates) == {Meter.REQUEST} else None
        customer = Customer(name, made.id, endpoint_id, flat)
        pool = await open_pool(self.direct_url, size=1, timeout_s=20)
        try:
            await Ledger(pool).open_accounts(made.id)
        finally:
            await pool.close()
        await self.price(customer, rates)
        new = NewEndpoint(
            org_id=made.id,
            id=endpoint_id,
            alias=None,
            real_model=MODEL,
            status=EndpointStatus.LIVE,
            context_tokens=8192,
            max_output_tokens=200,
            deadline_s=deadline_s,
            capabilities=("chat", "completion", "embedding"),
            backends=tuple(NewBackend(url, tolerates_unknown_fields=True) for url in self.backends),
        )
        async with session(self.direct_url) as conn:
            await endpoints.add(conn, new)
            for _ in range(keys_wanted):
                record, token = await keys.mint(conn, made.id)
                customer.keys.append(token)
                customer.key_ids.append(record.id)
        if credit_nanos:
            await self.pay(customer, credit_nanos)
        self.customers.append(customer)
        return customer

    async def price(self, customer: Customer, rates: Mapping[Meter, int]) -> Card:
        """Set a price from now on."""
        pool = await open_pool(self.direct_url, size=1, timeout_s=20)
        try:
            made = await Ledger(pool).set_price(customer.endpoint_id, rates)
        finally:
            await pool.close()
        plain = {meter.value: rate for meter, rate in rates.items()}
        card = Card(made.id, customer.endpoint_id, plain, made.effective_from_ms)
        customer.cards[card.id] = card
        return card

    async def pay(self, customer: Customer, amount_nanos: int, *, at_once: int = 1) -> int:
        """Pay in, again and again under one key until it is confirmed; returns how many calls were answered."""
        key, begun_s, answered = f"faults-{next(_numbers)}-{time.time_ns()}", time.time(), 0
        while True:
            calls = await asyncio.gather(*(self._pay_once(customer, amount_nanos, key) for _ in range(at_once)))
            answered += sum(calls)
            if any(calls):
                customer.payments.append(Payment(amount_nanos, begun_s, time.time()))
                return answered
            await asyncio.sleep(0.5)

    async def _pay_once(self, customer: Customer, amount_nanos: int, key: str) -> bool:
        try:
            pool = await open_pool(self.public_url, size=1, timeout_s=5)
        except LedgerUnavailable:
            return False
        try:
            await Ledger(pool).top_up(customer.org_id, amount_nanos, key)
        except LedgerUnavailable:
            return False
        except LedgerError:
            raise
        finally:
            pool.terminate()
        return True
