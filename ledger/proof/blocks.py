"""Audit blocks: a hash chain over all transfers, so that changing the past shows.

Floor: edge. A block covers the transfers of one span of time, ``[from_posted_at, to_posted_at)``; the next one begins
where it ends. Whoever keeps one hash elsewhere (``ledger audit --head``) can tell later whether anything up to that
block was changed, added or removed, also by somebody who may do everything in this database.

A block is closed once, so no transaction that is still open may add to it later. A transfer's ``posted_at`` is the
clock when its row was made, and the INSERT that made it holds a lock on the table from before that moment until its
transaction ends. So: look at the clock, note which transactions hold such a lock, wait until those have ended; then
whatever was posted before is there to be read. What is left is a clock that is set back, hence the margin. A row that
comes later than its block, for this or a worse reason, is a difference in every audit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from ledger.books.database import Connection, Pool, Record, transaction
from ledger.proof.block_values import BEGIN, GENESIS, Block, Head, Sealer, block_of
from ledger.proof.summaries import summarize_transfers
from ledger.queries import query

if TYPE_CHECKING:
    import asyncpg.cursor

    Cursor: TypeAlias = asyncpg.cursor.Cursor[Record]

ROWS_PER_BLOCK: Final = 50_000
"""A block is closed when it has so many transfers (more only if they were posted in the same microsecond)."""

BLOCKS_PER_TRANSACTION: Final = 100
MARGIN_S: Final = 60.0
"""How far behind the present blocks end: how much the clock of Postgres may be set back without harm."""

WAIT_FOR_WRITERS_S: Final = 3.0
QUERY_TIMEOUT_S: Final = 3600.0

_LOCK: Final = "pareta audit blocks"
_POLL_S: Final = 0.05
_ROWS_AT_ONCE: Final = 2000
_ROWS_PER_QUERY: Final = 500_000
_BLOCKS_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class BlockDifference:
    """A block that does not fit the books or the chain, and how."""

    number: int
    expected: str | None
    found: str | None
    note: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """How the chain fared. ``differences`` are in the order of the blocks: the first one says where trouble begins."""

    blocks: int
    transfers: int
    head: Block | None
    differences: tuple[BlockDifference, ...]


async def close_blocks(
    pool: Pool, *, margin_s: float = MARGIN_S, rows_per_block: int = ROWS_PER_BLOCK, wait_s: float = WAIT_FOR_WRITERS_S
) -> int:
    """Put every transfer that is old enough into a block, and return how many blocks were made.

    Any process may call it at any time: one works, the others return 0 at once. Nothing is done while a transaction
    that began before does not end within ``wait_s``; the next call tries again. Without new transfers no block is made.

    Args:
        margin_s: how far behind the present to stay, >= 0.

    Raises:
        LedgerUnavailable: nothing was lost; call again.
    """
    made = 0
    while True:
        async with transaction(pool, "close audit blocks") as conn:
            if not await conn.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))", _LOCK):
                return made
            until = await _settled_until(conn, margin_s, wait_s)
            closed = 0 if until is None else await _close(conn, until, rows_per_block)
        made += closed
        if closed < BLOCKS_PER_TRANSACTION:
            break
    if made:
        await summarize_transfers(pool)
    return made


async def newest_block(conn: Connection) -> Block | None:
    """The end of the chain; None while there is none."""
    row = await conn.fetchrow("SELECT * FROM ledger.audit_block ORDER BY number DESC LIMIT 1")
    return None if row is None else block_of(row)


async def verify_chain(conn: Connection, *, expect: Head | None = None) -> ChainReport:
    """Compute every block again and compare.

    Args:
        conn: inside a repeatable-read transaction, so that blocks and transfers are of one moment.
        expect: a block that must still be in the chain as it was.
    """
    differences: list[BlockDifference] = []
    previous: Block | None = None
    blocks = transfers = 0
    async for group in _groups(conn):
        rows = _Rows(conn, None if previous is None else previous.to_posted_at, group[-1].to_posted_at)
        for block in group:
            sealer = Sealer(block.number, block.previous_hash, block.from_posted_at)
            broken = _broken_link(previous, block)
            if block.number > (1 if previous is None else previous.number + 1):
                await rows.skip(block.from_posted_at)  # what only a block that is missing could vouch for
            while (row := await rows.take(block.to_posted_at)) is not None:
                sealer.add(row)
            differences += broken
            differences += _broken_seal(block, sealer, relinked=bool(broken))
            differences += _unexpected(block, expect)
            previous = block
            blocks += 1
            transfers += sealer.transfers
    if expect is not None and (previous is None or previous.number < expect.number):
        end = None if previous is None else f"the chain ends at block {previous.number}"
        differences.append(BlockDifference(expect.number, expect.hash.hex(), end, "the expected block is gone"))
    return ChainReport(blocks, transfers, previous, tuple(differences))


async def _settled_until(conn: Connection, margin_s: float, wait_s: float) -> datetime | None:
    """A moment before which nothing more will be posted; None if a transaction that may still do so does not end."""
    until: datetime = await conn.fetchval("SELECT clock_timestamp() - make_interval(secs => $1)", float(margin_s))
    give_up_s = time.monotonic() + wait_s
    writers: set[str] | None = None
    while True:
        now = {row["writer"] for row in await conn.fetch(query("block_writers"))}
        writers = now if writers is None else writers & now
        if not writers:
            return until
        if time.monotonic() >= give_up_s:
            return None
        await asyncio.sleep(_POLL_S)


async def _close(conn: Connection, until: datetime, rows_per_block: int) -> int:
    newest = await newest_block(conn)
    sealer = _next_sealer(newest)
    rows = _Rows(conn, None if newest is None else newest.to_posted_at, until)
    made = 0
    while (row := await rows.take(until)) is not None:
        if sealer.transfers >= rows_per_block and row["posted_at"] != sealer.last_posted_at:
            block = sealer.close()
            await _insert(conn, block)
            made += 1
            if made == BLOCKS_PER_TRANSACTION:
                return made
            sealer = _next_sealer(block)
        sealer.add(row)
    if sealer.transfers:
        await _insert(conn, sealer.close())
        made += 1
    return made


def _next_sealer(newest: Block | None) -> Sealer:
    if newest is None:
        return Sealer(1, GENESIS, BEGIN)
    return Sealer(newest.number + 1, newest.hash, newest.to_posted_at)


async def _insert(conn: Connection, block: Block) -> None:
    await conn.execute(
        """INSERT INTO ledger.audit_block
               (number, from_posted_at, to_posted_at, transfers, amount_nanos, previous_hash, hash)
           VALUES ($1, $2, $3, $4, $5, $6, $7)""",
        block.number,
        block.from_posted_at,
        block.to_posted_at,
        block.transfers,
        block.amount_nanos,
        block.previous_hash,
        block.hash,
    )


class _Rows:
    """The transfers of a span of time, read once from front to back."""

    def __init__(self, conn: Connection, since: datetime | None, until: datetime) -> None:
        self._source = conn.cursor(query("block_transfers"), since, until, timeout=QUERY_TIMEOUT_S)
        self._cursor: Cursor | None = None
        self._page: Sequence[Record] = ()
        self._at = 0

    async def take(self, before: datetime) -> Record | None:
        """The next transfer if it was posted before a moment."""
        if self._at == len(self._page):
            await self._turn_page()
        if self._at == len(self._page) or self._page[self._at]["posted_at"] >= before:
            return None
        self._at += 1
        return self._page[self._at - 1]

    async def skip(self, until: datetime) -> None:
        """Leave out everything that was posted before a moment."""
        while await self.take(until) is not None:
            pass

    async def _turn_page(self) -> None:
        self._cursor = self._cursor or await self._source
        self._page = await self._cursor.fetch(_ROWS_AT_ONCE, timeout=QUERY_TIMEOUT_S)
        self._at = 0


async def _groups(conn: Connection) -> AsyncIterator[list[Block]]:
    """All blocks in order, in groups whose transfers are few enough to be sorted at once."""
    group: list[Block] = []
    rows = last = 0
    while page := await conn.fetch(
        "SELECT * FROM ledger.audit_block WHERE number > $1 ORDER BY number LIMIT $2",
        last,
        _BLOCKS_AT_ONCE,
        timeout=QUERY_TIMEOUT_S,
    ):
        last = page[-1]["number"]
        for row in page:
            group.append(block_of(row))
            rows += row["transfers"]
            if rows >= _ROWS_PER_QUERY:
                yield group
                group, rows = [], 0
    if group:
        yield group


def _broken_link(previous: Block | None, block: Block) -> Sequence[BlockDifference]:
    """Whether a block follows on the one before it."""
    number, end, digest = (
        (1, BEGIN, GENESIS) if previous is None else (previous.number + 1, previous.to_posted_at, previous.hash)
    )
    if block.number != number:
        return [BlockDifference(number, f"block {number}", f"block {block.number}", "a block is missing")]
    if block.previous_hash != digest:
        note = "broken link: it was not made after the block that now stands before it"
        return [BlockDifference(number, digest.hex(), block.previous_hash.hex(), note)]
    if block.from_posted_at != end:
        note = "broken link: it does not begin where the block before it ends"
        return [BlockDifference(number, _text(end), _text(block.from_posted_at), note)]
    return ()


def _broken_seal(block: Block, sealer: Sealer, *, relinked: bool) -> Sequence[BlockDifference]:
    """Whether the transfers of a block's time are those it was closed over; if not, what that looks like."""
    again = sealer.close(block.to_posted_at)
    expected = f"{block.transfers} transfers of {block.amount_nanos} nano-USD"
    found = f"{again.transfers} transfers of {again.amount_nanos} nano-USD"
    surplus = again.transfers - block.transfers
    if surplus > 0:
        what = f"{surplus} added after it was closed"
    elif surplus < 0:
        what = f"{-surplus} deleted after it was closed"
    elif again.amount_nanos != block.amount_nanos:
        what = "an amount was changed after it was closed"
    elif again.hash != block.hash and not relinked:
        what, expected, found = "a transfer or the block was rewritten", block.hash.hex(), again.hash.hex()
    else:
        return ()
    span = f"transfers posted {_text(block.from_posted_at)} to {_text(block.to_posted_at)}"
    return [BlockDifference(block.number, expected, found, f"{what}: {span}")]


def _unexpected(block: Block, expect: Head | None) -> Sequence[BlockDifference]:
    if expect is None or block.number != expect.number or block.hash == expect.hash:
        return ()
    note = "the chain was made anew: this block is not the expected one"
    return [BlockDifference(block.number, expect.hash.hex(), block.hash.hex(), note)]


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}Z"
