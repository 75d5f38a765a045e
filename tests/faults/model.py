"""The independent count: what each request may cost at least and at most, by this file's own arithmetic.

Single-threaded and pure. It knows what clients saw, what engines delivered, which prices were set and what was paid,
and compares that with what the books say. It shares no code with the ledger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.attempt import Attempt, End, Rudeness
from tests.faults.books import Booked, Money
from tests.faults.customers import Card, Customer
from tests.faults.findings import Findings
from tests.faults.load import SILENT
from tests.faults.witness import Delivery

HEARTBEAT_S = 0.5
SLACK_S = HEARTBEAT_S + 2.0
"""What a worker that is killed may leave unbilled: the deltas of one heartbeat, and of the machine's own slowness."""

REAPED_S = 10.0
"""So long after its worker was killed a hold lives in Redis alone: should Redis be lost then, it is lost, too. Whatever
else is broken meanwhile holds the reaper up for as long."""

WEALTHY = ("rich", "flat", "quiet")
UNCERTAIN = "charge_uncertain"


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A fault, from its injection until all was well again. ``loses``: Redis forgot what it had answered; ``silences``:
    heartbeats may not have reached it."""

    name: str
    from_s: float
    to_s: float
    loses: bool = False
    clock_jumps: bool = False
    silences: bool = False
    unanswering_s: tuple[float, float] = (0.0, 0.0)

    def touches(self, attempt: Attempt, *, margin_s: float = 0.0) -> bool:
        return self.from_s <= attempt.ended_s + margin_s and attempt.sent_s - margin_s <= self.to_s


def _may_be_lost_with_redis(attempt: Attempt, disturbances: Sequence[Disturbance]) -> bool:
    """Whether Redis lost its memory while the request ran, or after that but before its hold was reaped."""
    until_s = attempt.ended_s + REAPED_S
    for disturbance in sorted(disturbances, key=lambda d: d.from_s):
        if disturbance.to_s < attempt.sent_s:
            continue
        if disturbance.from_s > until_s:
            return False
        if disturbance.loses:
            return True
        until_s += max(0.0, disturbance.to_s - max(disturbance.from_s, attempt.ended_s))
    return False


def price_nanos(card: Card, meters: Mapping[str, int]) -> int:
    """Quantity times rate, summed, rounded up once. Cached prompt and reasoning fall back to their parents' rates."""
    parents = {"cached_prompt": "prompt", "reasoning": "completion"}
    millionths = 0
    for meter, quantity in meters.items():
        rate = card.rates.get(meter, card.rates.get(parents.get(meter, ""), 0))
        millionths += quantity * rate * (1_000_000 if meter == "request" else 1)
    whole, rest = divmod(millionths, 1_000_000)
    return whole + (rest > 0)


def cost_nanos(card: Card, *, prompt: int, completion: int, cached: int = 0) -> int:
    """What a delivered answer costs."""
    return price_nanos(
        card, {"prompt": prompt - cached, "cached_prompt": cached, "completion": completion, "request": 1}
    )


@dataclass(slots=True)
class Model:
    """Compares one period after another; remembers sums only.

    ``charged``: by organization, what the checked holds came to. ``extra``: holds that were not taken by a request, and
    what they must cost.
    """

    charged: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    known: set[str] = field(default_factory=set)
    extra: dict[str, int] = field(default_factory=dict)
    finished_keys: dict[str, Attempt] = field(default_factory=dict)
    paid_keys: set[str] = field(default_factory=set)
    """Idempotency keys under which something was charged."""
    reaped_keys: set[str] = field(default_factory=set)
    """Those whose hold was reaped at some time: decision 0011 sets them free, though the worker may only have slept."""

    def check(
        self,
        attempts: Sequence[Attempt],
        deliveries: Mapping[str, list[Delivery]],
        holds: Mapping[str, list[str]],
        booked: Mapping[str, Booked],
        disturbances: Sequence[Disturbance],
    ) -> Findings:
        """One period. ``booked``: the holds that became known in it."""
        findings = Findings()
        before = dict(self.charged)
        owned: set[str] = set()
        for attempt in attempts:
            findings.counts["requests"] += 1
            findings.statuses[str(attempt.status or attempt.end)] += 1
            names = holds.get(attempt.name, [])
            owned.update(names)
            if attempt.request_id and names and attempt.request_id not in names:
                findings.wrong("books", attempt.told(), f"the worker knows it as {names}")
            events = [booked[name] for name in names if name in booked]
            self._check_attempt(attempt, deliveries.get(attempt.tag, []), events, disturbances, findings)
        self._check_keys(attempts, disturbances, findings)
        self._check_strangers(booked, owned, findings)
        for event in booked.values():
            self.charged[event.org_id] += event.charged_nanos
            self.known.add(event.hold_id)
            findings.counts["shortfall nanos"] += event.shortfall_nanos
        _check_refusals(attempts, before, disturbances, findings)
        return findings

    # -- one request -----------------------------------------------------------------------------------------

    def _check_attempt(
        self,
        attempt: Attempt,
        served: list[Delivery],
        events: list[Booked],
        disturbances: Sequence[Disturbance],
        findings: Findings,
    ) -> None:
        near = [d for d in disturbances if d.touches(attempt, margin_s=1.0)]
        told = f"{attempt.told()}\n  engines: {served}\n  books: {events}\n  near: {[d.name for d in near]}"
        if attempt.idempotency_key is not None and any(e.charged_nanos + e.shortfall_nanos for e in events):
            self.paid_keys.add(attempt.idempotency_key)
        if attempt.idempotency_key is not None and any("reap" in event.kinds for event in events):
            self.reaped_keys.add(attempt.idempotency_key)
        if attempt.is_replay:
            findings.counts["replayed"] += 1
            if any(event.charged_nanos for event in events) or attempt.billed_micros not in (0, None):
                findings.wrong("twice", "a replay was charged", told)
            return
        if len(events) > 1:
            findings.wrong("twice", "one request, several holds that ended", told)
            return
        must_be_charged = attempt.finished or attempt.billed_micros is not None
        if not events:
            if must_be_charged:
                findings.wrong("lost", "a finished request is not in the books", told)
            elif attempt.deltas and not _may_be_lost_with_redis(attempt, disturbances):
                findings.wrong("lost", "content was delivered and the books know nothing of it", told)
            elif attempt.deltas:
                findings.unbilled(attempt.deltas, told)
            return
        event = events[0]
        findings.counts["charges compared"] += 1
        card = attempt.customer.cards.get(event.card_id or "")
        if card is None or event.org_id != attempt.customer.org_id:
            findings.wrong("mischarged", "a price card or an organization that is not its own", told)
            return
        if event.charged_nanos < 0 or event.shortfall_nanos < 0:
            findings.wrong("mischarged", "a negative charge", told)
        whole_nanos = event.charged_nanos + event.shortfall_nanos
        if (whole_nanos or event.kinds != ("void",)) and whole_nanos != price_nanos(card, event.meters):
            findings.wrong("mischarged", "I7 the charge is not its usage times its price card", told)
        if event.shortfall_nanos and not (event.is_late or event.recovered):
            findings.wrong("mischarged", "a shortfall though the hold was open", told)
        if event.shortfall_nanos and attempt.customer.name in WEALTHY:
            findings.wrong("lost", "a shortfall of somebody who has plenty of credit", told)
        if event.started_ms is not None and card.from_ms > event.started_ms and not any(d.clock_jumps for d in near):
            findings.wrong("mischarged", "a price that came after the request had begun", told)
        if must_be_charged:
            _check_finished(attempt, served, event, card, findings, told)
        else:
            _check_cut_short(attempt, served, event, card, near, findings, told)

    # -- work under idempotency keys -------------------------------------------------------------------------

    def _check_keys(self, attempts: Sequence[Attempt], disturbances: Sequence[Disturbance], findings: Findings) -> None:
        for attempt in sorted(attempts, key=lambda a: a.sent_s):
            if attempt.idempotency_key is None or not attempt.finished:
                continue
            if attempt.is_replay:
                if attempt.idempotency_key not in self.paid_keys:
                    findings.wrong("lost", "an answer was replayed that nobody ever paid", attempt.told())
                continue
            first = self.finished_keys.setdefault(attempt.idempotency_key, attempt)
            if first is attempt:
                continue
            # Two that were sent at once may begin in either order, one of them much later.
            last_s = max(attempt.ended_s, first.ended_s)
            between = [d for d in disturbances if d.loses and d.from_s <= last_s and d.to_s >= first.sent_s]
            findings.counts["keys forgotten with Redis"] += bool(between)
            if attempt.idempotency_key in self.reaped_keys:
                findings.counts["keys freed by a reap"] += 1
            elif not between:
                findings.wrong("twice", "work was done twice under one key", f"{first.told()}\n{attempt.told()}")

    def _check_strangers(self, booked: Mapping[str, Booked], owned: set[str], findings: Findings) -> None:
        for hold_id, event in booked.items():
            if hold_id in owned:
                continue
            if hold_id in self.extra:
                findings.counts["charges compared"] += 1
                if event.charged_nanos != self.extra[hold_id]:
                    findings.wrong("mischarged", f"{hold_id} must cost {self.extra[hold_id]}", str(event))
            elif event.charged_nanos:
                findings.wrong("mischarged", "a charge that belongs to no request", str(event))
        for hold_id, amount_nanos in self.extra.items():
            if amount_nanos and hold_id not in booked and hold_id not in self.known:
                findings.wrong("lost", f"{hold_id} was settled at {amount_nanos} and is not in the books", "")

    # -- everyone's money ------------------------------------------------------------------------------------

    def check_money(self, customers: Sequence[Customer], money: Mapping[str, Money], findings: Findings) -> None:
        """Paid in = left + charged, to the nano; nothing below zero; and the books repeat what was checked before."""
        for customer in customers:
            have = money[customer.org_id]
            told = f"{customer.name} {have}, paid {customer.paid_nanos}, counted {self.charged[customer.org_id]}"
            if have.paid != customer.paid_nanos:
                findings.wrong("books", "what was paid in is not what the books say", told)
            if have.charged != self.charged[customer.org_id]:
                findings.wrong("books", "charges that were checked before have changed", told)
            if have.left < 0 or have.charged > customer.paid_nanos:
                findings.wrong("overspent", "more was charged than paid in", told)
            elif have.left + have.charged != customer.paid_nanos:
                findings.wrong("books", "paid in is not left plus charged", told)


def _check_finished(
    attempt: Attempt, served: list[Delivery], event: Booked, card: Card, findings: Findings, told: str
) -> None:
    findings.counts["finished compared"] += 1
    whole_nanos = event.charged_nanos + event.shortfall_nanos
    if attempt.billed_micros is not None and attempt.billed_micros != whole_nanos // 1000:
        findings.wrong("mischarged", "the client was told another price", told)
    if event.outcome not in ("finished", "abandoned"):
        findings.wrong("mischarged", "an answer that was finished has another outcome in the books", told)
    if attempt.sim_fault in SILENT and event.source != "reported":
        if attempt.stream and attempt.end is End.WHOLE and event.meters.get("completion", 0) != attempt.deltas:
            findings.wrong("mischarged", "not the deltas that were delivered", told)
        return
    candidates = [d for d in served if d.state == "finished"] or [d for d in served if d.served]
    cached = {0, attempt.cached} if attempt.sim_fault in SILENT else {attempt.cached}
    allowed = {
        cost_nanos(card, prompt=d.prompt, completion=d.completion, cached=min(tokens, d.prompt))
        for d in candidates
        for tokens in cached
    }
    if event.outcome == "abandoned":  # the client had the receipt but not the very end; the cache is told of there
        allowed |= {cost_nanos(card, prompt=d.prompt, completion=d.completion) for d in candidates}
    if whole_nanos not in allowed:
        findings.wrong("mischarged", f"I10 what was delivered costs {sorted(allowed)}", told)
    if attempt.usage is not None and event.source == "reported":
        prompt = event.meters.get("prompt", 0) + event.meters.get("cached_prompt", 0)
        completion = event.meters.get("completion", 0)
        if attempt.usage != (prompt, completion):
            findings.wrong("mischarged", "the client saw another usage than the books", told)


def _check_cut_short(
    attempt: Attempt,
    served: list[Delivery],
    event: Booked,
    card: Card,
    near: list[Disturbance],
    findings: Findings,
    told: str,
) -> None:
    findings.counts["cut short compared"] += 1
    charged, guessed = event.charged_nanos, event.source in ("counted", "estimated")
    guess = attempt.body_bytes // 4
    most = max(
        (cost_nanos(card, prompt=guess if guessed else d.prompt, completion=d.completion) for d in served), default=0
    )
    if charged > most:
        findings.wrong("mischarged", f"I10 more than {most}, which is what was delivered", told)
    failed = attempt.end is not End.LEFT and attempt.code and attempt.code != UNCERTAIN
    if failed and charged:
        findings.wrong("mischarged", "a failed request was charged", told)
    if failed or not attempt.deltas:
        return
    if not charged and "reap" not in event.kinds and attempt.end is End.BROKEN:
        return  # it failed without a word: the connection broke while the gateway gave up
    billed = (
        event.meters.get("completion", 0) if attempt.customer.flat_nanos is None else attempt.deltas * bool(charged)
    )
    findings.unbilled(attempt.deltas - billed, told)
    settled = event.outcome in ("finished", "abandoned")
    until_s = attempt.ended_s if settled else attempt.ended_s - SLACK_S
    due = max((deltas for at_s, deltas in attempt.progress if at_s <= until_s), default=0)
    # The first event of a stream carries no text, so one delta may be counted that the client has not seen.
    due = min(due - 1, attempt.deltas)
    is_excused = any(d.loses or d.silences for d in near) and not settled
    if due > billed and not is_excused and attempt.rudeness is not Rudeness.BEFORE_ANSWER:
        findings.wrong("lost", f"{due} deltas were delivered in time and {billed} are billed", told)


def _check_refusals(
    attempts: Sequence[Attempt],
    charged_before: Mapping[str, int],
    disturbances: Sequence[Disturbance],
    findings: Findings,
) -> None:
    """402 is said only to those who have no credit, and only when Postgres could be asked."""
    by_org: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        by_org[attempt.customer.org_id].append(attempt)
    for mine in by_org.values():
        customer = mine[0].customer
        for refused in (a for a in mine if a.status == 402):
            findings.counts["402 checked"] += 1
            away = [
                d for d in disturbances if d.unanswering_s[0] < refused.sent_s and refused.ended_s < d.unanswering_s[1]
            ]
            if away:
                findings.wrong("wrong 402", "402 while Postgres could not be asked", f"{refused.told()} {away}")
            if customer.name in WEALTHY:
                findings.wrong("wrong 402", "402 to a customer with plenty of credit", refused.told())
            elif customer.flat_nanos is not None:
                paid = sum(p.amount_nanos for p in customer.payments if p.done_s < refused.sent_s)
                others = sum(a.sent_s < refused.ended_s and a.status != 402 for a in mine)
                used = charged_before.get(customer.org_id, 0) + others * customer.flat_nanos
                if paid - used >= customer.flat_nanos:
                    findings.wrong("wrong 402", f"402 though at least {paid - used} must be left", refused.told())
