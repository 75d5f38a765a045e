"""The servers that the tests themselves stand on."""

from __future__ import annotations

import asyncpg
import redis.asyncio

from tests.services import FreshDatabase, FreshRedis


async def test_fresh_databases_are_empty_and_apart(fresh_database: FreshDatabase) -> None:
    """What one database is given is not seen in the next."""
    first = await asyncpg.connect(fresh_database(), ssl=False)
    second = await asyncpg.connect(fresh_database(), ssl=False)
    try:
        await first.execute("CREATE TABLE here (x int)")
        assert await second.fetchval("SELECT to_regclass('here')") is None
    finally:
        await first.close()
        await second.close()


async def test_a_killed_redis_keeps_what_it_acknowledged(fresh_redis: FreshRedis) -> None:
    """After kill -9 the server comes back on the same port with every acknowledged write."""
    service = fresh_redis()
    url = service.url
    client = redis.asyncio.Redis.from_url(url)
    for number in range(50):
        await client.rpush("list", number)
    await client.aclose()
    service.kill()
    service.start()
    assert service.url == url
    client = redis.asyncio.Redis.from_url(url)
    assert await client.llen("list") == 50
    await client.aclose()


def test_shared_servers_answer(postgres_url: str, redis_url: str) -> None:
    """The session's shared servers are there for plain tests, too."""
    assert postgres_url.startswith("postgresql://")
    assert redis_url.startswith("redis://")
