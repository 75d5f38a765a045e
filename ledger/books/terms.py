"""Who may book a shard: one at a time, decided by Postgres.

Floor: edge. Two things together. An advisory lock says who is alive: it falls with the session, so a killed
reconciler is replaced at once. The fencing token says who may write: it rises with every takeover and is checked inside
every transaction. A reconciler that is alive but paused keeps its lock, so a term that was not renewed for ``LEASE_S``
may be taken without the lock; the fence makes that safe.
"""

from __future__ import annotations

from ledger.books.batches import Term
from ledger.books.booking import Position
from ledger.books.database import PooledConnection, translated
from ledger.errors import Fenced

LEASE_S = 15.0
"""A term that was not renewed for so long may be taken over by force."""

RENEW_S = 3.0
"""An idle holder renews this often."""

_STUCK_TRANSACTION_MS = 10_000
"""Postgres ends a transaction whose client says nothing for so long: it may hold the checkpoint's row lock."""


async def try_take(conn: PooledConnection, shard: int, holder: str) -> Term | None:
    """Take the shard if it is free, or if its holder is silent for too long.

    Args:
        conn: the connection that will do the booking; the lock lives and dies with it.
        holder: a name for people who look into the table.
    """
    with translated("take over the reconciling"):
        await conn.execute(f"SET idle_in_transaction_session_timeout = {_STUCK_TRANSACTION_MS}")
        await conn.execute(
            "INSERT INTO ledger.reconcile_checkpoint (shard) VALUES ($1) ON CONFLICT (shard) DO NOTHING", shard
        )
        locked = await try_lock(conn, shard)
        row = await conn.fetchrow(
            """UPDATE ledger.reconcile_checkpoint SET fence = fence + 1, holder = $2, updated_at = clock_timestamp()
                WHERE shard = $1 AND ($3 OR updated_at < clock_timestamp() - make_interval(secs => $4))
            RETURNING fence, epoch, seq, stream_id, last_event""",
            shard,
            holder,
            locked,
            LEASE_S,
        )
    if row is None:
        return None
    return Term(shard, row["fence"], Position(row["epoch"], row["seq"], row["stream_id"], row["last_event"]))


async def try_lock(conn: PooledConnection, shard: int) -> bool:
    """Take the advisory lock if it is free (again is harmless)."""
    return bool(await conn.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", _lock_name(shard)))


async def renew(conn: PooledConnection, term: Term) -> None:
    """Say that the holder lives.

    Raises:
        Fenced: somebody has taken over.
    """
    with translated("renew the reconciler's term"):
        renewed = await conn.fetchval(
            """UPDATE ledger.reconcile_checkpoint SET updated_at = clock_timestamp() WHERE shard = $1 AND fence = $2
            RETURNING true""",
            term.shard,
            term.fence,
        )
    if not renewed:
        raise Fenced(f"Another reconciler books shard {term.shard} now.")


def _lock_name(shard: int) -> str:
    return f"pareta reconcile {shard}"
