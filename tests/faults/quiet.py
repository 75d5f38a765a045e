"""Waiting until the money has come to rest, and what is looked at then."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError

from gateway.stack.environment import environment_of
from ledger.outbox.set_aside import UNREADABLE_FILE
from tests.faults.findings import Findings
from tests.faults.world import ROOT, World
from tests.system.wire import ask

QUIET_S = 100.0
_LOOKS = 3
"""So many times in a row nothing must be under way."""


async def wait_quiet(world: World, findings: Findings, within_s: float = QUIET_S) -> bool:
    """Until nothing is held, streamed, journaled, carried or frozen. A world that never rests is a violation."""
    give_up_s = time.monotonic() + within_s
    quiet, waiting = 0, "nothing was looked at"
    while quiet < _LOOKS:
        waiting = await _waiting(world)
        quiet = 0 if waiting else quiet + 1
        if time.monotonic() > give_up_s:
            findings.wrong("not quiet", f"after {within_s:g} s there still is: {waiting}", str(world.folder))
            return False
        await asyncio.sleep(0.25)
    return True


async def _waiting(world: World) -> str:
    """What is still under way, in words; empty if nothing is."""
    try:
        found = await _in_redis(world)
        async with world.sql() as conn:
            found += [f"{row['what']}: {row['n']}" for row in await conn.fetch(_IN_POSTGRES) if row["n"]]
        found += await _in_workers(world)
    except (RedisError, OSError, asyncpg.PostgresError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return ", ".join(found)


_IN_POSTGRES = """
    SELECT 'carried holds' AS what, count(*) AS n FROM ledger.carried_hold
    UNION ALL SELECT 'frozen nanos', coalesce(sum(frozen_nanos), 0) FROM ledger.balance
    UNION ALL SELECT 'grants on their way', count(*) FROM ledger.escrow_grant WHERE state = 'pending'"""


async def _in_redis(world: World) -> list[str]:
    client = redis.asyncio.Redis.from_url(world.redis.url, socket_timeout=5)
    found = []
    try:
        for shard in range(world.settings.shards):
            prefix = "pareta:{%d}:" % shard  # noqa: UP031 - braces are Redis's own here
            if n := await client.zcard(prefix + "expiry"):
                found.append(f"holds: {n}")
            epoch, seq = (int(value or 0) for value in await client.hmget(prefix + "meta", "epoch", "seq"))
            async with world.sql() as conn:
                at = await conn.fetchrow("SELECT epoch, seq FROM ledger.reconcile_checkpoint WHERE shard = $1", shard)
            # A shard in which nothing happened yet has nothing to be booked, whatever its epoch.
            is_untouched = seq == 0 and at is not None and at["seq"] == 0
            if not is_untouched and (at is None or (at["epoch"], at["seq"]) != (epoch, seq)):
                found.append(f"events to be booked: Redis is at {seq} of epoch {epoch}, the books at {at}")
    finally:
        await client.aclose()
    return found


async def _in_workers(world: World) -> list[str]:
    answer = await ask(world.settings.effective_admin_port, "GET", "/metrics")
    lines = [line.rpartition(" ") for line in answer.body.decode().splitlines()]
    sums = {name: [float(value) for key, _, value in lines if key.partition("{")[0] == name] for name in _JOURNALED}
    return [f"{name}: {sum(values):g}" for name, values in sums.items() if not values or sum(values)]


_JOURNALED = ("pareta_outbox_pending", "pareta_outbox_unbooked")
"""Settlements on their way to Redis, and those that the books do not have yet. A gauge that is missing is no 0."""


async def audit(world: World, findings: Findings) -> None:
    """The operator's own proof has to agree: ``ledger audit`` ends with 0."""
    command = [sys.executable, "-m", "gateway", "ledger", "audit", "--json"]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=ROOT,
        env={**_environment(), **environment_of(world.settings)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    findings.counts["audits"] += 1
    if done.returncode == 0:
        return
    try:
        differences = json.loads(done.stdout)["differences"]
    except (ValueError, KeyError):
        differences = []
    said = f"exit {done.returncode}: {done.stderr or done.stdout}"
    for difference in differences or [{"subject": "as a whole", "note": said}]:
        findings.wrong("books", f"ledger audit: {difference.get('subject')}: {difference.get('note')}", str(difference))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PARETA_")}


def journals_left(world: World) -> list[Path]:
    """What workers have set aside because nobody wanted it."""
    return sorted((world.settings.data_path / "journal").glob(f"*/{UNREADABLE_FILE}*"))
