"""What an audit block is: which transfers it covers, and how its hash is made of them. See ``ledger.proof.blocks``.

Floor: ledger, without I/O. The hash is SHA-256 over the hash of the block before (32 zero bytes for the first one), one
line for each transfer in the order (posted_at, id), and a last line about the block. Lines are JSON without spaces in
UTF-8 with a line feed; times are microseconds since 1970. Anybody can compute it again with any tool.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from ledger.books.database import Record

GENESIS: Final = bytes(32)
"""What the first block has for the hash of the block before."""

BEGIN: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Where the first block begins: before every transfer that the books can hold."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Block:
    """A link of the chain. ``amount_nanos`` is the sum of its transfers."""

    number: int
    from_posted_at: datetime
    to_posted_at: datetime
    transfers: int
    amount_nanos: int
    previous_hash: bytes
    hash: bytes
    made_at: datetime | None = None

    @property
    def head(self) -> Head:
        """What to keep elsewhere."""
        return Head(self.number, self.hash)


@dataclass(frozen=True, slots=True)
class Head:
    """A block's number and hash: with them, everything up to that block can be held against the books later."""

    number: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.number}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``NUMBER:HASH`` as :meth:`__str__` writes it.

        Raises:
            ValueError: it is something else; the text is a sentence for the operator.
        """
        number, _, digest = text.strip().partition(":")
        try:
            found = cls(int(number), bytes.fromhex(digest))
        except ValueError:
            found = cls(0, b"")
        if found.number < 1 or len(found.hash) != hashlib.sha256().digest_size:
            raise ValueError(f"{text[:80]!r} is not a block's number and hash such as 12:9f86d0…; --head prints one.")
        return found


@dataclass(slots=True)
class Sealer:
    """Computes the hash of one block, transfer by transfer."""

    number: int
    previous_hash: bytes
    from_posted_at: datetime
    transfers: int = 0
    amount_nanos: int = 0
    last_posted_at: datetime | None = None
    _digest: Any = field(init=False)

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256(self.previous_hash)

    def add(self, row: Record) -> None:
        """Take the next transfer in."""
        self._digest.update(canonical(row))
        self.transfers += 1
        self.amount_nanos += row["amount_nanos"]
        self.last_posted_at = row["posted_at"]

    def close(self, to_posted_at: datetime | None = None) -> Block:
        """The finished block; without an end given it ends right behind its last transfer."""
        if to_posted_at is None:
            assert self.last_posted_at is not None
            to_posted_at = self.last_posted_at + _TICK
        about = [self.number, _micros(self.from_posted_at), _micros(to_posted_at), self.transfers]
        self._digest.update(orjson.dumps([*about, str(self.amount_nanos)]) + b"\n")
        return Block(
            number=self.number,
            from_posted_at=self.from_posted_at,
            to_posted_at=to_posted_at,
            transfers=self.transfers,
            amount_nanos=self.amount_nanos,
            previous_hash=self.previous_hash,
            hash=self._digest.digest(),
        )


def canonical(row: Record) -> bytes:
    """A transfer as the chain sees it: one JSON line, the time in microseconds since 1970.

    ``[id, kind, debit account, credit account, nano-USD, event id, posted at]``, without spaces, UTF-8.
    """
    return orjson.dumps(
        [
            row["id"],
            row["kind"],
            row["debit_account"],
            row["credit_account"],
            row["amount_nanos"],
            row["event_id"],
            _micros(row["posted_at"]),
        ],
        option=orjson.OPT_APPEND_NEWLINE,
    )


def block_of(row: Record) -> Block:
    """A row of ``ledger.audit_block``."""
    return Block(
        number=row["number"],
        from_posted_at=row["from_posted_at"],
        to_posted_at=row["to_posted_at"],
        transfers=row["transfers"],
        amount_nanos=int(row["amount_nanos"]),
        previous_hash=row["previous_hash"],
        hash=row["hash"],
        made_at=row["made_at"],
    )


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _TICK
