"""The guardian's decision, case by case and for every pair of states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.trust import FENCED_EPOCH, Books, Found, Verdict, decide

USED = Books(epoch=3, seq=10, last_event="settle:h10:5:1700", witnessed_seq=0, used=True)
FRESH = Books(epoch=3, seq=0, last_event="", witnessed_seq=0, used=False)


def found(epoch: int | None = 3, seq: int = 10, event: str = USED.last_event) -> Found:
    return Found(epoch, seq, event)


@pytest.mark.parametrize(
    ("books", "redis", "verdict"),
    [
        (USED, found(), Verdict.TRUST),
        (USED, found(seq=25), Verdict.TRUST),
        (FRESH, found(None, 0, ""), Verdict.BEGIN),
        (FRESH, found(seq=0, event=""), Verdict.TRUST),
        (USED, found(None, 0, ""), Verdict.RENEW),
        (USED, found(seq=9), Verdict.RENEW),
        (USED, found(event="settle:other:5:1700"), Verdict.RENEW),
        (USED, found(event=""), Verdict.RENEW),
        (USED, found(epoch=2), Verdict.RENEW),
        (USED, found(epoch=FENCED_EPOCH), Verdict.RENEW),
        (FRESH, found(epoch=2), Verdict.BEGIN_AGAIN),
        (FRESH, found(epoch=FENCED_EPOCH), Verdict.BEGIN_AGAIN),
        (USED, found(epoch=4), Verdict.REFUSE),
        (FRESH, found(seq=1, event="grant:o:5:1"), Verdict.REFUSE),
    ],
)
def test_each_state_of_redis_has_its_verdict(books: Books, redis: Found, verdict: Verdict) -> None:
    """Whole is trusted, never used is begun, lost is renewed, foreign is refused; each with a sentence."""
    decision = decide(books, redis)
    assert decision.verdict is verdict
    assert decision.reason.endswith(".")


def test_what_a_witness_saw_counts_beyond_the_checkpoint() -> None:
    """A Redis that went back behind what a worker saw is renewed, but what it still has is booked before."""
    books = Books(epoch=3, seq=10, last_event=USED.last_event, witnessed_seq=15, used=True)
    assert decide(books, found(seq=12)).verdict is Verdict.BOOK_AND_RENEW
    assert decide(books, found(seq=10)).verdict is Verdict.RENEW
    assert decide(books, found(seq=15)).verdict is Verdict.TRUST


def test_a_checkpoint_without_identity_is_compared_by_number_only() -> None:
    """Books of an earlier version do not know which event they booked last; that alone is no loss."""
    books = Books(epoch=3, seq=10, last_event="", witnessed_seq=0, used=True)
    assert decide(books, found(event="")).verdict is Verdict.TRUST


@given(
    st.builds(
        Books,
        epoch=st.integers(1, 4),
        seq=st.integers(0, 5),
        last_event=st.sampled_from(("", "a", "b")),
        witnessed_seq=st.integers(0, 5),
        used=st.booleans(),
    ),
    st.builds(Found, epoch=st.none() | st.integers(0, 5), seq=st.integers(0, 6), event=st.sampled_from(("", "a", "b"))),
)
def test_nothing_that_lacks_a_known_event_is_ever_trusted(books: Books, redis: Found) -> None:
    """Whatever the two say: trusted means the same epoch and every event that anybody knows of."""
    if decide(books, redis).verdict is Verdict.TRUST:
        assert redis.epoch == books.epoch
        assert redis.seq >= max(books.seq, books.witnessed_seq)
        assert not (books.seq and books.last_event) or redis.event == books.last_event
    if decide(books, redis).verdict in (Verdict.BEGIN, Verdict.BEGIN_AGAIN):
        assert not books.used
        assert not books.seq
