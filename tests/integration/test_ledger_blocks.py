"""The chain of audit blocks: closed once, never forked, and red as soon as the past was changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ledger.books.database import Pool
from ledger.books.ledger import Ledger
from ledger.proof.block_values import BEGIN, GENESIS, Head
from ledger.proof.blocks import BLOCKS_PER_TRANSACTION, ChainReport, close_blocks, newest_block, verify_chain
from ledger.proof.summaries import summarize_transfers
from tests.integration.ledger_world import migrated_pool, new_request_id
from tests.services import FreshDatabase

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def pool(fresh_database: FreshDatabase) -> AsyncIterator[Pool]:
    async with migrated_pool(fresh_database()) as pool:
        await Ledger(pool).open_accounts("org_aaaaaaaaaaaa")
        yield pool


async def post(conn: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], count: int = 1, **columns: object) -> None:
    """Transfers straight into the table: the chain cares for nothing else."""
    await conn.executemany(
        """INSERT INTO ledger.transfer
               (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id, posted_at)
           SELECT $1, ledger.id_time($1), 'top_up', 1, 3, $2, $1, coalesce($3, clock_timestamp())""",
        [
            ("tx_" + new_request_id()[4:], columns.get("amount_nanos", 7 + number), columns.get("posted_at"))
            for number in range(count)
        ],
    )


async def tamper(pool: Pool, sql: str) -> None:
    """What no program can do: change the past, with the triggers off (a superuser's right)."""
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")
        for table in ("transfer", "audit_block"):
            await conn.execute(f"GRANT ALL ON ledger.{table} TO CURRENT_USER")
        await conn.execute(sql)


async def verified(pool: Pool, expect: Head | None = None) -> ChainReport:
    async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        return await verify_chain(conn, expect=expect)


@pytest.fixture
async def chain(pool: Pool) -> Pool:
    """Five blocks of ten transfers, one a second."""
    async with pool.acquire() as conn:
        for number in range(50):
            await post(conn, posted_at=FIRST + timedelta(seconds=number))
    assert await close_blocks(pool, rows_per_block=10) == 5
    report = await verified(pool)
    assert (report.blocks, report.transfers, report.differences) == (5, 50, ())
    return pool


async def test_every_transfer_is_in_one_block_and_blocks_follow_each_other(pool: Pool) -> None:
    """However the transfers come and however often blocks are closed, each is covered once and the chain holds."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    posted = 0
    for _ in range(6):
        async with pool.acquire() as conn, conn.transaction():
            count = dice.randrange(0, 40)
            await post(conn, count, posted_at=datetime.now(UTC) if dice.random() < 0.3 else None)  # all in one instant
            posted += count
        await close_blocks(pool, margin_s=0, rows_per_block=dice.randrange(1, 20))
    blocks = await pool.fetch("SELECT * FROM ledger.audit_block ORDER BY number")
    assert [block["number"] for block in blocks] == list(range(1, len(blocks) + 1))
    assert sum(block["transfers"] for block in blocks) == posted
    assert sum(block["amount_nanos"] for block in blocks) == await pool.fetchval(
        "SELECT sum(amount_nanos) FROM ledger.transfer"
    )
    assert [block["from_posted_at"] for block in blocks] == [BEGIN, *(block["to_posted_at"] for block in blocks[:-1])]
    assert [block["previous_hash"] for block in blocks] == [GENESIS, *(block["hash"] for block in blocks[:-1])]
    report = await verified(pool)
    assert (report.differences, report.blocks, report.transfers) == ((), len(blocks), posted)
    assert await close_blocks(pool, margin_s=0) == 0


async def test_the_hash_can_be_computed_with_other_tools(chain: Pool) -> None:
    """The documented bytes, made here by another program text, have the recorded hashes."""
    previous = bytes(32)
    for block in await chain.fetch("SELECT * FROM ledger.audit_block ORDER BY number"):
        digest = hashlib.sha256(previous)
        rows = await chain.fetch(
            """SELECT json_build_array(id, kind, debit_account, credit_account, amount_nanos, event_id,
                                       (extract(epoch FROM posted_at) * 1000000)::bigint)::text
                 FROM ledger.transfer WHERE posted_at >= $1 AND posted_at < $2 ORDER BY posted_at, id""",
            block["from_posted_at"],
            block["to_posted_at"],
        )
        for row in rows:
            digest.update(json.dumps(json.loads(row[0]), separators=(",", ":")).encode() + b"\n")
        times = [(block[name] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
                 for name in ("from_posted_at", "to_posted_at")]  # fmt: skip
        last = [block["number"], *times, len(rows), str(block["amount_nanos"])]
        digest.update(json.dumps(last, separators=(",", ":")).encode() + b"\n")
        assert digest.digest() == block["hash"]
        previous = block["hash"]


AT_25 = f"(timestamptz '{FIRST.isoformat()}' + interval '25 s')"


@pytest.mark.parametrize(
    ("sql", "number", "note"),
    [
        (f"UPDATE ledger.transfer SET amount_nanos = 1 WHERE posted_at = {AT_25}", 3, "amount was changed"),
        (f"UPDATE ledger.transfer SET debit_account = 2 WHERE posted_at = {AT_25}", 3, "was rewritten"),
        (f"UPDATE ledger.transfer SET posted_at = posted_at + '1 ms' WHERE posted_at = {AT_25}", 3, "was rewritten"),
        (f"UPDATE ledger.transfer SET event_id = 'other' WHERE posted_at = {AT_25}", 3, "was rewritten"),
        (f"DELETE FROM ledger.transfer WHERE posted_at = {AT_25}", 3, "1 deleted"),
        ("INSERT INTO ledger.transfer SELECT left(id, 28) || CASE right(id, 1) WHEN 'x' THEN 'y' ELSE 'x' END, "
         "id_time, kind, debit_account, "
         f"credit_account, 1, event_id, posted_at FROM ledger.transfer WHERE posted_at = {AT_25}", 3, "1 added"),
        ("UPDATE ledger.audit_block SET hash = sha256('forged') WHERE number = 5", 5, "was rewritten"),
        ("UPDATE ledger.audit_block SET amount_nanos = 1 WHERE number = 5", 5, "amount was changed"),
        ("UPDATE ledger.audit_block SET previous_hash = sha256('forged') WHERE number = 3", 3, "broken link"),
        ("DELETE FROM ledger.audit_block WHERE number = 3", 3, "a block is missing"),
        ("DELETE FROM ledger.audit_block WHERE number = 1", 1, "a block is missing"),
    ],
)  # fmt: skip
async def test_one_change_of_the_past_is_one_difference(chain: Pool, sql: str, number: int, note: str) -> None:
    """A changed, deleted or added transfer, a forged or missing block: exactly that block, and what was done to it."""
    await tamper(chain, sql)
    (found,) = (await verified(chain)).differences
    assert found.number == number
    assert note in found.note


async def test_a_transfer_from_before_the_books_began_is_found(chain: Pool) -> None:
    """Nothing can hide in front of the first block."""
    await tamper(chain, f"UPDATE ledger.transfer SET posted_at = '1970-01-02' WHERE posted_at = {AT_25}")
    found = (await verified(chain)).differences
    assert [(difference.number, difference.note[:9]) for difference in found] == [(1, "1 added a"), (3, "1 deleted")]


async def test_a_block_that_was_replaced_with_a_valid_one_breaks_the_next_link(chain: Pool) -> None:
    """A forger who computes the hash of a block anew is caught by the block behind it; at the end, by a kept hash."""
    async with chain.acquire() as conn:
        head = await newest_block(conn)
    assert head is not None
    await tamper(
        chain,
        f"""DELETE FROM ledger.audit_block WHERE number >= 3;
            UPDATE ledger.transfer SET amount_nanos = amount_nanos + 1 WHERE posted_at = {AT_25}""",
    )
    kept = await chain.fetchrow("SELECT * FROM ledger.audit_block WHERE number = 2")
    gone = (await verified(chain, head.head)).differences
    assert [(difference.number, difference.note) for difference in gone] == [(5, "the expected block is gone")]
    await close_blocks(chain, rows_per_block=10)
    assert (await verified(chain)).differences == ()  # a whole new chain is sound in itself
    (found,) = (await verified(chain, head.head)).differences
    assert (found.number, found.expected) == (5, head.hash.hex())
    assert (await verified(chain, Head(2, kept["hash"]))).differences == ()
    # And a single forged block in the middle, valid in itself, does not carry the next one.
    forged = await chain.fetchrow("SELECT * FROM ledger.audit_block WHERE number = 4")
    await tamper(
        chain,
        """UPDATE ledger.transfer SET amount_nanos = 1000 WHERE posted_at >= '2026-01-01 00:00:30Z'
              AND posted_at < '2026-01-01 00:00:31Z';
           DELETE FROM ledger.audit_block WHERE number > 3""",
    )
    await close_blocks(chain, rows_per_block=10)
    await tamper(
        chain, "UPDATE ledger.audit_block SET previous_hash = '\\x" + forged["hash"].hex() + "' WHERE number = 5"
    )
    (found,) = (await verified(chain)).differences
    assert (found.number, found.note[:11]) == (5, "broken link")


async def test_closers_at_once_make_one_chain(pool: Pool) -> None:
    """Eight closers at the same time, again and again: no fork, no gap, nothing twice."""
    for _ in range(5):
        async with pool.acquire() as conn:
            await post(conn, 30)
        await asyncio.gather(*[close_blocks(pool, margin_s=0, rows_per_block=7) for _ in range(8)])
    await close_blocks(pool, margin_s=0)
    report = await verified(pool)
    assert (report.differences, report.transfers) == ((), 150)


async def test_a_transaction_that_is_still_open_is_waited_for(pool: Pool) -> None:
    """Its transfers are older than those already committed, so closing before its end would leave them out."""
    async with pool.acquire() as slow:
        opened = slow.transaction()
        await opened.start()
        await post(slow)
        async with pool.acquire() as conn:
            await post(conn)
        assert await close_blocks(pool, margin_s=0, wait_s=0.2) == 0
        waiting = asyncio.create_task(close_blocks(pool, margin_s=0, wait_s=20))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await opened.commit()
    assert await waiting == 1
    report = await verified(pool)
    assert (report.differences, report.transfers) == ((), 2)


async def test_readers_and_later_writers_hold_nothing_up(pool: Pool) -> None:
    """An open transaction that only reads, or that began to write later, does not keep blocks from being closed."""
    async with pool.acquire() as reader, reader.transaction():
        await reader.fetch("SELECT * FROM ledger.transfer")
        async with pool.acquire() as conn:
            await post(conn)
        assert await close_blocks(pool, margin_s=0, wait_s=0) == 1


async def test_the_present_is_left_alone(pool: Pool) -> None:
    """What was posted within the margin waits for a later block."""
    async with pool.acquire() as conn:
        await post(conn)
    assert await close_blocks(pool, margin_s=3600) == 0
    assert await close_blocks(pool, margin_s=0) == 1


async def test_a_late_row_inside_a_closed_block_is_a_difference(chain: Pool) -> None:
    """A transfer that turns up with a time that is sealed already (a clock set back, a forgery) is found."""
    async with chain.acquire() as conn:
        await post(conn, posted_at=FIRST + timedelta(seconds=7.5))
    assert await close_blocks(chain) == 0
    (found,) = (await verified(chain)).differences
    assert (found.number, found.note[:7]) == (1, "1 added")


async def test_a_role_without_rights_to_watch_others_closes_blocks_safely(pool: Pool) -> None:
    """Locks are visible to every role: an ordinary one waits for a superuser's open transaction, too."""
    await pool.execute(
        """CREATE ROLE closer_of_blocks LOGIN; GRANT USAGE ON SCHEMA ledger TO closer_of_blocks;
           GRANT SELECT ON ledger.transfer TO closer_of_blocks;
           GRANT SELECT, INSERT ON ledger.audit_block TO closer_of_blocks"""
    )
    try:
        async with pool.acquire() as slow:
            opened = slow.transaction()
            await opened.start()
            await post(slow)
            async with pool.acquire() as conn:
                await post(conn)

            async def closed() -> int:
                async with pool.acquire() as own:
                    await own.execute("SET SESSION AUTHORIZATION closer_of_blocks")
                    try:
                        return await close_blocks(_Single(own), margin_s=0, wait_s=0.2)  # type: ignore[arg-type]
                    finally:
                        await own.execute("RESET SESSION AUTHORIZATION")

            assert await closed() == 0
            await opened.commit()
            assert await closed() == 1
        assert (await verified(pool)).transfers == 2
    finally:
        await pool.execute("DROP OWNED BY closer_of_blocks; DROP ROLE closer_of_blocks")


class _Single:
    """A pool of one connection that is already ours."""

    def __init__(self, conn: object) -> None:
        self._conn = conn

    def acquire(self, **_: object) -> _Single:
        return self

    async def __aenter__(self) -> object:
        return self._conn

    async def __aexit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("text", ["", "5", "5:", "5:zz", f"0:{'00' * 32}", f"-1:{'00' * 32}", "5:00", f"x:{'00' * 32}"])
def test_a_head_that_is_none_is_refused(text: str) -> None:
    """A kept hash is read back exactly, or refused with a sentence."""
    with pytest.raises(ValueError, match="is not a block's number and hash"):
        Head.parse(text)
    kept = Head(12, hashlib.sha256(b"x").digest())
    assert Head.parse(f" {kept}\n") == kept


async def test_the_last_minutes_are_found_without_reading_whole_months(pool: Pool) -> None:
    """Closing blocks summarizes what has filled up, once: a look at the end then reads a part of the pages."""

    async def pages_read() -> int:
        (plan,) = await pool.fetchrow(
            """EXPLAIN (ANALYZE, BUFFERS, FORMAT json)
               SELECT count(*) FROM ledger.transfer WHERE posted_at > '2026-01-01 16:00:00Z'"""
        )
        top = json.loads(plan)[0]["Plan"]
        return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])

    for row in await pool.fetch("SELECT relid::regclass::text FROM pg_partition_tree('ledger.transfer') WHERE isleaf"):
        await pool.execute(f"ALTER TABLE {row[0]} SET (autovacuum_enabled = off)")
    await pool.execute(
        """INSERT INTO ledger.transfer
               (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id, posted_at)
           SELECT id, ledger.id_time(id), 'top_up', 1, 3, 1, id, timestamptz '2026-01-01Z' + n * interval '1 s'
             FROM (SELECT 'tx_' || substr($1, 5, 10) || lpad(n::text, 16, '0') AS id, n
                     FROM generate_series(1, 60000) AS n) AS ids""",
        new_request_id(),
    )
    await pool.execute("ANALYZE ledger.transfer")
    before = await pages_read()
    assert await close_blocks(pool) == 2
    assert await pages_read() < before / 3
    assert await summarize_transfers(pool) == 0


async def test_a_long_backlog_is_closed_in_one_call(pool: Pool) -> None:
    """More blocks than fit in one transaction still make one chain without a gap."""
    async with pool.acquire() as conn:
        await post(conn, 2 * BLOCKS_PER_TRANSACTION + 5)
    assert await close_blocks(pool, margin_s=0, rows_per_block=1) == 2 * BLOCKS_PER_TRANSACTION + 5
    report = await verified(pool)
    assert (report.differences, report.blocks, report.transfers) == ((), report.transfers, report.blocks)
