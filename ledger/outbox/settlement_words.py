"""A settlement as a record of the journal, and back.

Floor: ``ledger`` (no I/O). A record says all that is needed to end the hold without anything else that the worker knew.
Fields are only ever added: a journal outlives the version that wrote it.
"""

from __future__ import annotations

import orjson

from ledger.counter.values import Settlement
from ledger.counter.words import check_settlement, settle_words


def encode(settlement: Settlement) -> bytes:
    """The bytes of a record.

    Raises:
        ValueError: the counter would refuse it, so it must not get into the journal.
    """
    check_settlement(settlement)
    try:
        return orjson.dumps(
            {
                "hold": settlement.hold_id,
                "org": settlement.org_id,
                "amount": settlement.amount_nanos,
                "refunds": settlement.refunds,
                "opens": settlement.opens,
                "info": settlement.info.decode(),
                "claim": settlement.claim,
                "outcome": settlement.outcome,
                "epoch": settlement.epoch,
            }
        )
    except TypeError as error:
        raise ValueError(f"A settlement that can't be written down: {error}.") from error


def decode(payload: bytes) -> Settlement:
    """The settlement of a record.

    Raises:
        ValueError: it is none.
    """
    try:
        row = orjson.loads(payload)
        settlement = Settlement(
            hold_id=row["hold"],
            org_id=row["org"],
            amount_nanos=row["amount"],
            refunds=tuple((name, units) for name, units in row["refunds"]),
            opens=tuple(row["opens"]),
            info=row["info"].encode(),
            # Records of a version without idempotency keys, or without epochs of shards, lack these.
            claim=row.get("claim"),
            outcome=row.get("outcome"),
            epoch=int(row.get("epoch", 0)),
        )
        settle_words(settlement, "settle")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from error
    return settlement
