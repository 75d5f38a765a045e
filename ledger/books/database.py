"""The connection edge to Postgres: one pool, deadlines on everything, errors translated once.

Floor: edge. Knows asyncpg and nothing of money. TLS, password files and several hosts are asked for in the
URL, with the words that asyncpg understands (``sslmode``, ``sslrootcert``, ``passfile``…).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from ledger.errors import LedgerConflict, LedgerNotMigrated, LedgerRefused, LedgerUnavailable

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    PooledConnection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PooledConnection
    Record: TypeAlias = asyncpg.Record
else:
    Pool = asyncpg.Pool
    PooledConnection = asyncpg.pool.PoolConnectionProxy
    Connection = asyncpg.Connection
    Record = asyncpg.Record

CONNECT_TIMEOUT_S = 10.0
"""How long opening one connection may take, name lookup and TLS included."""

_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,  # 08: the connection broke
    asyncpg.InterfaceError,  # the driver noticed first
    asyncpg.InternalClientError,  # the server died between two messages, and the driver's own states disagree
    asyncpg.OperatorInterventionError,  # 57: shutdown, crash, cancelled by a deadline
    asyncpg.InsufficientResourcesError,  # 53: disk full, too many connections
    asyncpg.TransactionRollbackError,  # 40: deadlock, serialization
    asyncpg.InvalidAuthorizationSpecificationError,  # 28
    asyncpg.InvalidCatalogNameError,  # 3D: no such database
    asyncpg.ReadOnlySQLTransactionError,  # 25006: connected to a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.PostgresSystemError,  # 58: the disk of the server
    OSError,
    TimeoutError,
)
_NOT_MIGRATED = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn driver exceptions into ledger errors.

    Args:
        doing: what was tried, to complete "The ledger could not …".

    Raises:
        LedgerUnavailable, LedgerNotMigrated, LedgerConflict, LedgerRefused.
    """
    try:
        yield
    except _NOT_MIGRATED as error:
        raise LedgerNotMigrated(
            f"The ledger could not {doing}: its tables are missing or older than this release. Run the migrations."
        ) from error
    except _UNAVAILABLE as error:
        if isinstance(error, ValueError):  # the driver could not encode an argument; nothing was sent
            raise LedgerRefused(f"The ledger could not {doing}: a value is out of bounds.") from error
        raise LedgerUnavailable(f"The ledger could not {doing}: {_reason(error)}.") from error
    except asyncpg.IntegrityConstraintViolationError as error:
        raise LedgerConflict(f"The ledger could not {doing}: it contradicts what is recorded.") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise LedgerRefused(f"The ledger could not {doing}: the database role may not.") from error
    except asyncpg.DataError as error:
        raise LedgerRefused(f"The ledger could not {doing}: a value is out of bounds.") from error
    except asyncpg.PostgresError as error:  # whatever else the server says: nobody may die of it
        raise LedgerUnavailable(f"The ledger could not {doing}: Postgres said {type(error).__name__}.") from error


def _reason(error: BaseException) -> str:
    """A cause without addresses, user names or SQL."""
    match error:
        case asyncpg.QueryCanceledError() | TimeoutError():
            return "Postgres did not answer in time"
        case asyncpg.DiskFullError():
            return "the disk of Postgres is full"
        case asyncpg.TooManyConnectionsError():
            return "Postgres has no connection left"
        case asyncpg.InvalidAuthorizationSpecificationError():
            return "Postgres refused the user or password"
        case asyncpg.InvalidCatalogNameError():
            return "there is no such database"
        case asyncpg.ReadOnlySQLTransactionError():
            return "this Postgres is read-only (a standby)"
        case asyncpg.TransactionRollbackError():
            return "it collided with another transaction"
        case asyncpg.AdminShutdownError() | asyncpg.CrashShutdownError() | asyncpg.CannotConnectNowError():
            return "Postgres is starting or stopping"
        case _:
            return "Postgres cannot be reached"


async def open_pool(
    database_url: str, *, size: int = 4, timeout_s: float = 5.0, application_name: str = "pareta"
) -> Pool:
    """Open a pool; the first connection is made now, so a wrong URL fails here and not under load.

    Args:
        database_url: ``postgres://…`` with whatever ``sslmode`` the operator wants.
        size: most connections at once.
        timeout_s: deadline of every query that doesn't bring its own.
        application_name: how the connections are called in ``pg_stat_activity``.

    Raises:
        LedgerUnavailable: it can't be reached; LedgerRefused: the URL can't be read.
    """
    try:
        with translated("connect"):
            pool: Pool = await asyncpg.create_pool(
                database_url,
                min_size=0,  # a floor would be restored in the background, with tracebacks in the log of every outage
                max_size=size,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=timeout_s,
                server_settings={"application_name": application_name, "timezone": "UTC"},
            )
            try:
                async with pool.acquire(timeout=CONNECT_TIMEOUT_S):
                    pass
            except BaseException:
                pool.terminate()
                raise
    except ValueError as error:
        raise LedgerRefused(f"The database URL cannot be read: {error}.") from error
    return pool


@asynccontextmanager
async def acquired(pool: Pool, doing: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> AsyncIterator[PooledConnection]:
    """A connection of the pool; whatever the driver raises inside comes out as a ledger error."""
    with translated(doing):
        async with pool.acquire(timeout=timeout_s) as connection:
            yield connection


@asynccontextmanager
async def transaction(
    pool: Pool, doing: str, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> AsyncIterator[PooledConnection]:
    """One READ COMMITTED transaction, committed when the block ends well."""
    async with acquired(pool, doing, timeout_s=timeout_s) as connection, connection.transaction():
        yield connection
