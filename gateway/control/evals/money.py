"""The money of eval runs: credit is held up front, and what was really used is settled once.

Floor: control. A run is metered by the same ledger as a request: a hold in Redis that heartbeats keep alive, and one
settlement that is durable in this process's journal before the run counts as completed. Its id is the run's hold id, so
that a settlement that is posted again after a crash is the same one.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from gateway.core import errors
from gateway.core.errors import Refused
from ledger.core.ids import REQUEST_RANDOM_BYTES, request_id
from ledger.core.meters import Meter, UsageSource
from ledger.core.money import NANOS_PER_MICRO
from ledger.core.pricing import UNITS_PER_RATE, Quote
from ledger.counter import Admission, Beat, CounterUnavailable, Held, OutOfCredit, Settlement
from ledger.cover import Answer
from ledger.errors import LedgerError
from ledger.outbox.values import OutboxUnavailable

if TYPE_CHECKING:
    from ledger.books.ledger import Ledger
    from ledger.counter import CreditCounter
    from ledger.cover import Cover
    from ledger.outbox import SettlementOutbox

PRICED_AS: Final = "evals"
"""What stands in the books in place of an endpoint."""
RATES: Final = {Meter.EVAL_MICRO_USD: NANOS_PER_MICRO * UNITS_PER_RATE}
"""A micro-USD costs a micro-USD."""
HOLD_FOR_S: Final = 120.0
"""How long a run's hold outlives this process; much longer than a restart takes."""
BEAT_EVERY_S: Final = 15.0
COVER_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class RunHold:
    """Credit that is held for a run."""

    hold_id: str
    epoch: int
    held_micros: int


class RunMoney:
    """Holds and settles.

    Args:
        counter: the credit counter.
        cover: brings credit from Postgres.
        outbox: of this process's journal.
        ledger: for the price card.
    """

    def __init__(self, counter: CreditCounter, cover: Cover, outbox: SettlementOutbox, ledger: Ledger) -> None:
        self._counter = counter
        self._cover = cover
        self._outbox = outbox
        self._ledger = ledger
        self._card_id: str | None = None

    async def hold(self, org_id: str, key_id: str, *, most_micros: int) -> RunHold:
        """Hold credit for a run.

        Args:
            most_micros: what the run can cost at most.

        Raises:
            Refused: 402, there is not so much; 503, nobody can say.
        """
        hold_id = request_id(time.time_ns() // 1_000_000, secrets.token_bytes(REQUEST_RANDOM_BYTES))
        nanos = most_micros * NANOS_PER_MICRO
        admission = Admission(
            hold_id,
            org_id,
            "run",
            Quote(nanos, 0),
            tokens_wanted=0,
            expires_in_s=HOLD_FOR_S,
            info=orjson.dumps(await self._info(key_id, outcome="reaped")),
            clamp=False,
        )
        try:
            verdict = await self._counter.admit(admission)
            for _ in range(COVER_ATTEMPTS):
                if not isinstance(verdict, OutOfCredit):
                    break
                covered = await self._cover.cover(org_id, nanos - verdict.available_nanos, verdict)
                if covered.answer is Answer.EXHAUSTED:
                    # A last look: others may have given back what they held meanwhile.
                    verdict = await self._counter.admit(admission)
                    break
                if covered.answer is not Answer.GRANTED:
                    raise Refused(errors.ledger_unavailable(covered.retry_after_s))
                verdict = await self._counter.admit(admission)
        except CounterUnavailable:
            raise Refused(errors.ledger_unavailable()) from None
        if isinstance(verdict, Held):
            return RunHold(hold_id, verdict.epoch, most_micros)
        if isinstance(verdict, OutOfCredit):
            raise Refused(errors.insufficient_credits())
        raise Refused(errors.ledger_unavailable())

    async def keep(self, holds: Collection[tuple[str, str]]) -> frozenset[str]:
        """Keep holds alive, each ``(hold id, organization)``; answers the ids of those that are not held any more.

        Raises:
            CounterUnavailable: nobody knows; do it again.
        """
        if not holds:
            return frozenset()
        beats = [Beat(hold_id, org_id, 0, b"{}", HOLD_FOR_S) for hold_id, org_id in holds]
        return await self._counter.heartbeat(beats)

    async def settle(self, org_id: str, key_id: str, hold: RunHold, *, total_micros: int, started_ms: int) -> None:
        """Charge a run, or release its credit if it cost nothing; a repeat changes nothing.

        Returns when it is durable: no crash can undo it, and it is charged once.

        Raises:
            OutboxUnavailable: it may not be; do it again.
        """
        info = await self._info(key_id, outcome="finished" if total_micros else "failed")
        info |= {
            "meters": {Meter.EVAL_MICRO_USD.value: total_micros} if total_micros else {},
            "source": UsageSource.REPORTED.value,
            "status": 200,
            "started_ms": started_ms,
        }
        await self._outbox.post(
            Settlement(
                hold.hold_id,
                org_id,
                total_micros * NANOS_PER_MICRO,
                info=orjson.dumps(info),
                epoch=hold.epoch,
            )
        )

    async def release(self, org_id: str, key_id: str, hold: RunHold) -> None:
        """Give back the credit of a run that will not be. Should nobody hear it, the hold expires."""
        with contextlib.suppress(OutboxUnavailable, LedgerError):
            await self.settle(org_id, key_id, hold, total_micros=0, started_ms=time.time_ns() // 1_000_000)

    async def _info(self, key_id: str, *, outcome: str) -> dict[str, Any]:
        return {
            "key": key_id,
            "endpoint": PRICED_AS,
            "card": await self._card(),
            "route": "eval-runs",
            "outcome": outcome,
        }

    async def _card(self) -> str:
        if self._card_id is None:
            self._card_id = (await self._ledger.set_price(PRICED_AS, RATES)).id
        return self._card_id
