"""Keys, endpoints and prices of the platform, in this process's memory and fresh: the hot path's view of Postgres.

Floor: edges. One connection listens on the channel ``pareta_state``; what an announcement names is read anew.
Endpoints with their price cards and discounts are all held, keys only once they were used. Behind the announcements
stands a resync: every ``resync_s``, and whenever the listening connection had to be made again, all endpoints are read
and all remembered keys are compared with the database.

How old may an answer be? ``_heard_at_s`` is the last moment of which we know that nothing announced before it was
missed: a keepalive asks the listening connection every second. Once that moment, or the reading of the key itself, is
more than ``max_staleness_s`` ago, remembered keys no longer count. So a revoked key is refused within a second
usually, and within ``max_staleness_s`` even behind a connection that died without a word.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg
import orjson

from gateway.core import keys as core_keys
from gateway.core.ports import StateUnavailable
from gateway.core.state import Endpoint, Key
from gateway.edges.key_cache import KeyCache, Remembered
from gateway.edges.state_rows import Placed, changed_keys, read_endpoints, read_key, read_pepper
from ledger.books.database import Pool, open_pool, translated
from ledger.errors import LedgerError

if TYPE_CHECKING:
    ListeningConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]

log = logging.getLogger("gateway.state")

CHANNEL: Final = "pareta_state"
KEEPALIVE_S: Final = 1.0
KEEPALIVE_TIMEOUT_S: Final = 2.0
LOOKUPS_AT_ONCE: Final = 8
LOOKUPS_WAITING: Final = 10_000
_COMPARE_CHUNK: Final = 5_000
_LOOKUP_ATTEMPTS: Final = 3
_RETRY_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """Bounds of a feed; the defaults are those of ``gateway.settings``.

    ``timeout_s`` is the deadline of a lookup and of each query; ``pool_size`` leaves the listening connection out.
    """

    pool_size: int = 4
    timeout_s: float = 5.0
    resync_s: float = 30.0
    max_staleness_s: float = 10.0
    key_cache_size: int = 100_000


class StateFeed:
    """What the hot path knows (``gateway.core.ports.StateView``): :meth:`start` makes one, :meth:`close` ends it."""

    def __init__(self, pool: Pool, pepper: bytes, database_url: str, options: FeedOptions) -> None:
        self.lookups = 0
        """Keys asked of Postgres so far."""
        self.reconnects = 0
        """How often the listening connection was made anew."""
        self._pool = pool
        self._pepper = pepper
        self._database_url = database_url
        self._options = options
        self._placed: dict[str, Placed] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._of_org: dict[str, tuple[Endpoint, ...]] = {}
        self._named: dict[tuple[str, str], Endpoint] = {}
        """By organization and name."""
        self._serving: dict[tuple[str, str], list[Endpoint]] = {}
        """By organization and alias."""
        self._refreshing = asyncio.Lock()
        self._stale: set[str] = set()
        self._woken = asyncio.Event()
        self._keys = KeyCache(size=options.key_cache_size)
        self._loads: dict[str, asyncio.Task[Key | None]] = {}
        self._doubted: set[str] = set()
        self._lookup_slots = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._heard_at_s = float("-inf")
        self._listening: ListeningConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._on_key_revoked: list[Callable[[str], None]] = []
        self._on_endpoint_changed: list[Callable[[str], None]] = []

    @classmethod
    async def start(cls, database_url: str, options: FeedOptions | None = None) -> StateFeed:
        """Connect, listen, read every endpoint, and keep doing so in the background.

        Raises:
            StateUnavailable: Postgres can't be reached or has not been migrated; the text says which.
        """
        options = options or FeedOptions()
        try:
            pool = await open_pool(
                database_url, size=options.pool_size, timeout_s=options.timeout_s, application_name="pareta-state"
            )
        except LedgerError as error:
            raise StateUnavailable(str(error)) from error
        try:
            feed = cls(pool, await read_pepper(pool), database_url, options)
            connection = await feed._subscribe()
        except BaseException as error:
            pool.terminate()
            await asyncio.sleep(0)
            if isinstance(error, LedgerError):
                raise StateUnavailable(str(error)) from error
            raise
        feed._tasks = [
            asyncio.create_task(feed._listen(connection), name="state-listen"),
            asyncio.create_task(feed._refresh_for_ever(), name="state-refresh"),
        ]
        return feed

    async def close(self) -> None:
        """Stop listening and let go of every connection. Lookups under way end with StateUnavailable."""
        tasks = [*self._tasks, *self._loads.values()]
        for task in tasks:
            task.cancel()
        # Nothing here writes, so nothing need end politely; and a Postgres that says nothing can't delay us.
        self._pool.terminate()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listening is not None:  # its task may have been cancelled before its first step
            self._listening.terminate()
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn

    # -- what the hot path asks: no wait, no query --------------------------------------------------------------------

    @property
    def pepper(self) -> bytes:
        """The installation's secret that marks its own key ids."""
        return self._pepper

    @property
    def fresh(self) -> bool:
        """Whether remembered keys are trusted at this moment; what /readyz wants to know."""
        return self.staleness_s <= self._options.max_staleness_s

    @property
    def staleness_s(self) -> float:
        """Seconds since we last knew that nothing announced was missed."""
        return time.monotonic() - self._heard_at_s

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """The endpoint of this id that is not removed."""
        return self._endpoints.get(endpoint_id)

    def endpoints(self) -> Iterable[Endpoint]:
        """All endpoints, in no order."""
        return self._endpoints.values()

    def endpoints_of(self, org_id: str) -> Sequence[Endpoint]:
        """An organization's endpoints, oldest first."""
        return self._of_org.get(org_id, ())

    def endpoint_named(self, org_id: str, name: str) -> Endpoint | None:
        """The endpoint that an organization calls so."""
        return self._named.get((org_id, name))

    def endpoints_serving(self, org_id: str, alias: str) -> Sequence[Endpoint]:
        """An organization's endpoints of a model alias, oldest first."""
        return self._serving.get((org_id, alias), ())

    def key(self, key_id: str) -> Key | None:
        """A key that is remembered and not too old to be trusted."""
        found = self._keys.get(key_id)
        if found is None:
            return None
        known_at_s = max(self._heard_at_s, found.read_at_s)
        return found.key if time.monotonic() - known_at_s <= self._options.max_staleness_s else None

    async def fetch_key(self, key_id: str) -> Key | None:
        """A key, read from Postgres if need be: once for all who wait for it, and never for an id we did not mint.

        Raises:
            StateUnavailable: Postgres did not answer in time, or too many lookups wait already.
        """
        remembered = self.key(key_id)
        if remembered is not None:
            return remembered
        if self._keys.is_absent(key_id, time.monotonic()) or not core_keys.id_is_ours(self._pepper, key_id):
            return None
        load = self._loads.get(key_id)
        if load is None:
            if len(self._loads) >= LOOKUPS_WAITING:
                raise StateUnavailable("Too many keys are being looked up at once.")
            load = asyncio.create_task(self._load_key(key_id), name="state-key")
            self._loads[key_id] = load
            load.add_done_callback(lambda done: self._loaded(key_id, done))
        # A client that hangs up must not take the lookup from the others that wait for it.
        await asyncio.wait([load])
        if load.cancelled():
            raise StateUnavailable("The gateway is stopping.")
        return load.result()

    # -- who wants to hear of changes ---------------------------------------------------------------------------------

    def on_key_revoked(self, listener: Callable[[str], None]) -> None:
        """Call back with the id of each key that is revoked or deleted, whether it was used here or not."""
        self._on_key_revoked.append(listener)

    def on_endpoint_changed(self, listener: Callable[[str], None]) -> None:
        """Call back with the id of each endpoint that came, changed (its prices and backends too) or went."""
        self._on_endpoint_changed.append(listener)

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def _load_key(self, key_id: str) -> Key | None:
        try:
            async with asyncio.timeout(self._options.timeout_s), self._lookup_slots:
                for _ in range(_LOOKUP_ATTEMPTS):
                    self._doubted.discard(key_id)
                    read_at_s = time.monotonic()
                    self.lookups += 1
                    found = await read_key(self._pool, key_id)
                    # Announced as changed while it was being read: what we hold may be the old row.
                    if key_id not in self._doubted:
                        self._remember(key_id, found, read_at_s)
                        break
                return None if found is None else found[0]
        except (LedgerError, TimeoutError) as error:
            raise StateUnavailable("Keys can't be looked up at the moment.") from error

    def _remember(self, key_id: str, found: tuple[Key, str] | None, read_at_s: float) -> None:
        if found is None:
            self._keys.put_absent(key_id, read_at_s)
        else:
            self._keys.put(Remembered(key=found[0], version=found[1], read_at_s=read_at_s))

    def _loaded(self, key_id: str, load: asyncio.Task[Key | None]) -> None:
        self._loads.pop(key_id, None)
        self._doubted.discard(key_id)
        if not load.cancelled():
            load.exception()  # whoever waited has seen it; when nobody did, it is no news

    # -- endpoints ----------------------------------------------------------------------------------------------------

    async def _refresh(self, ids: Sequence[str] | None) -> None:
        """Read endpoints (``None``: all) and put them in place. One at a time, so an older answer never wins."""
        async with self._refreshing:
            found = await read_endpoints(self._pool, ids)
            asked = self._placed.keys() | found.keys() if ids is None else set(ids)
            changed = [key for key in asked if self._placed.get(key) != found.get(key)]
            self._replace({endpoint_id: found.get(endpoint_id) for endpoint_id in changed})
        _tell(self._on_endpoint_changed, changed)

    def _replace(self, changes: Mapping[str, Placed | None]) -> None:
        touched: set[str] = set()
        ids_of: dict[str, set[str]] = {}
        for endpoint_id, placed in changes.items():
            old = self._placed.pop(endpoint_id, None)
            self._endpoints.pop(endpoint_id, None)
            if old is not None:
                touched.add(old.endpoint.org_id)
            if placed is not None:
                self._placed[endpoint_id] = placed
                self._endpoints[endpoint_id] = placed.endpoint
                touched.add(placed.endpoint.org_id)
                ids_of.setdefault(placed.endpoint.org_id, set()).add(endpoint_id)
        for org_id in touched:
            self._arrange(org_id, ids_of.get(org_id, set()))

    def _arrange(self, org_id: str, new_ids: Set[str]) -> None:
        """Put an organization's endpoints in order, and find them by what they are called."""
        before = self._of_org.pop(org_id, ())
        for endpoint in before:
            self._named.pop((org_id, endpoint.name), None)
            if endpoint.alias is not None:
                self._serving.pop((org_id, endpoint.alias), None)
        ids = {endpoint.id for endpoint in before} | new_ids
        here = [found for one in ids if (found := self._placed.get(one)) and found.endpoint.org_id == org_id]
        if not here:
            return
        here.sort(key=lambda found: (found.created_us, found.endpoint.id))
        self._of_org[org_id] = tuple(found.endpoint for found in here)
        for endpoint in self._of_org[org_id]:
            self._named.setdefault((org_id, endpoint.name), endpoint)
            if endpoint.alias is not None:
                self._serving.setdefault((org_id, endpoint.alias), []).append(endpoint)

    async def _refresh_for_ever(self) -> None:
        """Read what was announced, and everything now and then; after a failure again, with growing pauses."""
        resync_at_s = self._next_resync_s()
        failures = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, resync_at_s - time.monotonic())):
                    await self._woken.wait()
            self._woken.clear()
            stale, self._stale = self._stale, set()
            try:
                if time.monotonic() >= resync_at_s:
                    await self._resync()
                    resync_at_s = self._next_resync_s()
                elif stale:
                    await self._refresh(sorted(stale))
                failures = 0
            except Exception as error:
                # Whatever it was: a worker that never refreshes again would serve what was stopped, at old prices.
                log.warning("Endpoints can't be refreshed: %s", error, exc_info=not isinstance(error, LedgerError))
                self._stale |= stale
                self._woken.set()
                await asyncio.sleep(_pause_s(failures))
                failures += 1

    def _next_resync_s(self) -> float:
        # Spread, so that a hundred workers do not ask in the same second for ever.
        return time.monotonic() + self._options.resync_s * random.uniform(0.8, 1.0)  # noqa: S311

    async def _resync(self) -> None:
        """Read every endpoint and compare every remembered key with the database."""
        await self._refresh(None)
        for ids, versions in self._keys.versions(_COMPARE_CHUNK):
            changed = await changed_keys(self._pool, ids, versions)
            for key_id, _ in changed:
                self._forget(key_id)
            _tell(self._on_key_revoked, [key_id for key_id, revoked in changed if revoked])

    # -- announcements ------------------------------------------------------------------------------------------------

    async def _listen(self, connection: ListeningConnection) -> None:
        """Follow the announcements for ever, over as many connections as it takes."""
        while True:
            await self._follow(connection)
            connection = await self._subscribe_again()

    async def _subscribe(self) -> ListeningConnection:
        """Open a listening connection, then read everything that may have changed while there was none.

        Raises:
            LedgerError: Postgres can't be reached.
        """
        timeout_s = self._options.timeout_s
        with translated("listen for changes"):
            connection = await asyncpg.connect(
                self._database_url,
                timeout=timeout_s,
                command_timeout=timeout_s,
                server_settings={"application_name": "pareta-listen"},
            )
        async with _terminated_on_error(connection):
            with translated("listen for changes"):
                await connection.add_listener(CHANNEL, self._hear)
            listening_at_s = time.monotonic()
            # A lookup under way may have read its row before the change whose announcement nobody heard.
            self._doubted.update(self._loads)
            await self._resync()
        self._heard_at_s = listening_at_s
        self._listening = connection
        return connection

    async def _subscribe_again(self) -> ListeningConnection:
        attempt = 0
        while True:
            try:
                connection = await self._subscribe()
            except LedgerError as error:
                log.warning("The feed of keys and prices is cut off: %s", error)
                await asyncio.sleep(_pause_s(attempt))
                attempt += 1
            else:
                self.reconnects += 1
                log.info("The feed of keys and prices is connected again.")
                return connection

    async def _follow(self, connection: ListeningConnection) -> None:
        """Return when the connection is lost. It is asked now and then, for a dead one may say nothing."""
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _connection: lost.set())
        staleness_s = self._options.max_staleness_s
        pause_s, patience_s = min(KEEPALIVE_S, staleness_s / 4), min(KEEPALIVE_TIMEOUT_S, staleness_s / 2)
        async with _terminated(connection):
            while not connection.is_closed():
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await lost.wait()
                        return
                asked_at_s = time.monotonic()
                try:
                    with translated("follow the changes"):
                        async with asyncio.timeout(patience_s):
                            await connection.execute("SELECT 1")
                except LedgerError:
                    return
                # Announcements travel before the answer to a question that was asked after them.
                self._heard_at_s = asked_at_s

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """Take one announcement. Whatever it says, it never raises: it runs inside the driver."""
        try:
            news = orjson.loads(str(payload))
            kind, subject, revoked = str(news["kind"]), str(news["id"]), news.get("revoked") is True
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("An announcement on %s was not understood.", CHANNEL)
            return
        match kind:
            case "key":
                self._forget(subject)
                if revoked:
                    _tell(self._on_key_revoked, [subject])
            case "org":
                self._keys.evict_org(subject)
                self._doubted.update(self._loads)  # whose keys these are is not known yet
            case "endpoint" | "price":
                self._stale.add(subject)
                self._woken.set()
            case "discount":
                self._stale.update(endpoint.id for endpoint in self.endpoints_of(subject))
                self._woken.set()
            case _:
                pass  # a newer release may announce more

    def _forget(self, key_id: str) -> None:
        self._keys.evict(key_id)
        if key_id in self._loads:
            self._doubted.add(key_id)


def _tell(listeners: Iterable[Callable[[str], None]], subjects: Iterable[str]) -> None:
    for subject in subjects:
        for listener in listeners:
            try:
                listener(subject)
            except Exception:
                log.exception("A listener of the state feed failed.")


def _pause_s(attempt: int) -> float:
    return _RETRY_S[min(attempt, len(_RETRY_S) - 1)] * random.uniform(0.5, 1.0)  # noqa: S311


@asynccontextmanager
async def _terminated(connection: ListeningConnection) -> AsyncIterator[None]:
    """End the connection without ceremony, however the block ends."""
    try:
        yield
    finally:
        connection.terminate()


@asynccontextmanager
async def _terminated_on_error(connection: ListeningConnection) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        connection.terminate()
        raise
