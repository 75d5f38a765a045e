"""How much credit lies in Redis: the policy and the meter behind it, without servers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.money import MAX_GRANT_NANOS
from ledger.counter.values import LedgerEvent, Level
from ledger.upkeep.escrow import FORGET_AFTER_S, SPEND_MEMORY_S, EscrowPolicy, SpendMeter

POLICY = EscrowPolicy(slice_nanos=1000, horizon_s=10.0, idle_s=60.0)


def charge(org: str, amount: int, *, kind: str = "settle") -> LedgerEvent:
    hold = "" if kind in ("grant", "return") else "req_x"
    return LedgerEvent("1-1", 1, 1, kind, hold, org, amount, 0, 0, 0, None, b"{}", None)


def test_who_spends_fast_has_more_in_redis() -> None:
    """The target is what the horizon needs, and never less than a slice nor more than Redis can count."""
    assert POLICY.target_nanos(0) == 1000
    assert POLICY.target_nanos(500) == 5000
    assert POLICY.target_nanos(1e30) == MAX_GRANT_NANOS


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 10**5))
def test_a_refill_and_a_return_never_chase_each_other(available: int, held: int, rate: float) -> None:
    """After a refill nothing is returned, after a return nothing is refilled, and both come to rest."""
    level = Level(available, held, 1)
    refill = POLICY.refill_nanos(level, rate)
    if refill:
        assert available + refill == POLICY.target_nanos(rate)
        after = Level(available + refill, held, 2)
        assert POLICY.refill_nanos(after, rate) == 0
        assert POLICY.excess_keep_nanos(after, rate) is None
    keep = POLICY.excess_keep_nanos(level, rate)
    if keep is not None:
        assert not refill
        assert keep < available
        after = Level(keep, held, 1)
        assert POLICY.refill_nanos(after, rate) == 0
        assert POLICY.excess_keep_nanos(after, rate) is None


def test_the_meter_follows_what_is_spent_and_forgets() -> None:
    """A steady spender is measured to within a tenth, fades when it stops, and is forgotten after a while."""
    meter = SpendMeter()
    for tick in range(200):
        grant, refund = charge("org_b", 5, kind="grant"), charge("org_b", -3, kind="late")
        meter.note([charge("org_a", 100), grant, refund], tick * 0.5)
    assert meter.nanos_per_s("org_a", 100.0) == pytest.approx(200, rel=0.1)
    assert meter.nanos_per_s("org_b", 100.0) == 0
    assert meter.nanos_per_s("org_a", 100.0 + SPEND_MEMORY_S) < 80
    assert meter.active(100.0) == ["org_a", "org_b"]
    assert meter.active(100.0 + FORGET_AFTER_S) == []
