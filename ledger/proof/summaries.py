"""Keeps the index on the time of transfers useful: what was posted lately is found without reading whole months.

Floor: edge. That index is a BRIN: a summary of each range of pages. Postgres makes summaries when it vacuums a table,
which, where rows are only ever added, it does after every fifth of it; until then that fifth is read for every look at
the last minutes. So whoever closes audit blocks also summarizes the ranges that have filled up since. The last range of
each month is left alone while it fills: with a summary, each row booked would have to widen it.
"""

from __future__ import annotations

import logging
from typing import Final

from ledger.books.database import Connection, Pool, acquired
from ledger.errors import LedgerError
from ledger.queries import query

log: Final = logging.getLogger("pareta.ledger")

QUERY_TIMEOUT_S: Final = 300.0
LOCK_TIMEOUT_MS: Final = 500
"""A vacuum of the table makes the summaries itself, so it is not waited for."""


async def summarize_transfers(pool: Pool) -> int:
    """Summarize the ranges that are full and not summarized; returns how many. It only makes queries faster.

    Where it can't be done (another role owns the tables, a vacuum is at it) it is left to Postgres.
    """
    made = 0
    try:
        async with acquired(pool, "summarize the transfers") as conn:
            await conn.execute(
                f"SET lock_timeout = {LOCK_TIMEOUT_MS}"
            )  # the pool resets it when the connection returns
            for row in await conn.fetch(query("block_ranges")):
                made += await _summarize(conn, row["index"], row["ranges"], row["pages_per_range"])
    except LedgerError as error:
        log.debug("%s Queries by time are slower until the next vacuum.", error)
    return made


async def _summarize(conn: Connection, index: int, ranges: int, pages_per_range: int) -> int:
    """From the newest full range back to one that has its summary: those before it have theirs, too."""
    made = 0
    for number in range(ranges - 1, -1, -1):
        done = await conn.fetchval(
            "SELECT brin_summarize_range($1::oid::regclass, $2)",
            index,
            number * pages_per_range,
            timeout=QUERY_TIMEOUT_S,
        )
        if not done:
            break
        made += 1
    return made
