"""The control plane's door to Postgres: one way in, and the only place where driver errors are translated.

Floor: control. Storage functions take a :data:`Connection` and let the driver's errors pass; whoever opened the
connection through :func:`session` (or wraps its work in :func:`translated`) gets this project's errors instead.
"""

from __future__ import annotations

import secrets
from base64 import b32encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]


class ControlError(Exception):
    """The operator asked for something that can't be done; the text is a sentence for them."""


class NotFound(ControlError):
    """There is no such organization, key or endpoint."""


class Refused(ControlError):
    """It exists already and differs, or its state forbids the change."""


class StoreUnavailable(ControlError):
    """Postgres can't be reached, or is not ready for us. A retry is safe for everything that is idempotent."""


def new_id(prefix: str) -> str:
    """A fresh id: the prefix, an underscore, 12 random characters (60 bits)."""
    return f"{prefix}_{b32encode(secrets.token_bytes(8)).decode('ascii')[:12].lower()}"


@asynccontextmanager
async def session(database_url: str, *, timeout_s: float = 5.0) -> AsyncIterator[Connection]:
    """One connection for a short piece of work.

    Args:
        database_url: ``postgres://…``; ``sslmode`` in it is obeyed.
        timeout_s: deadline to connect, and of each statement.

    Raises:
        StoreUnavailable: Postgres can't be reached or the schema is not there.
    """
    with translated():
        connection = await asyncpg.connect(
            database_url,
            timeout=timeout_s,
            command_timeout=timeout_s,
            server_settings={"application_name": "pareta-control"},
        )
        try:
            yield connection
        finally:
            # A connection that broke inside can't be closed politely; the first error is the one to tell.
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=timeout_s)


_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,  # 08: the connection broke
    asyncpg.InterfaceError,  # the driver noticed first
    asyncpg.OperatorInterventionError,  # 57: shutdown, crash, cancelled by a deadline
    asyncpg.InsufficientResourcesError,  # 53: disk full, too many connections
    asyncpg.TransactionRollbackError,  # 40: deadlock
    asyncpg.ReadOnlySQLTransactionError,  # connected to a standby
    asyncpg.PostgresSystemError,  # 58: the server's own disk
    OSError,
    TimeoutError,
)


@contextmanager
def translated() -> Iterator[None]:
    """Turn driver errors into :class:`ControlError`; no text of the driver's gets out, for it may quote addresses."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError) as error:
        raise StoreUnavailable("The database lacks tables of this release; run the migrate command.") from error
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        raise StoreUnavailable("Postgres refused the user or the password of the database URL.") from error
    except asyncpg.InvalidCatalogNameError as error:
        raise StoreUnavailable("Postgres has no database of the name in the database URL.") from error
    except asyncpg.ClientConfigurationError as error:
        raise StoreUnavailable("The database URL can't be understood.") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise Refused("The user of the database URL may not do this.") from error
    except asyncpg.IntegrityConstraintViolationError as error:
        raise Refused(f"The database refused the value: its rule {error.constraint_name} does not hold.") from error
    except asyncpg.DataError as error:
        raise Refused("The database refused the value: it is out of bounds.") from error
    except _UNAVAILABLE as error:
        raise StoreUnavailable("Postgres can't be reached or broke off; check that it runs, then try again.") from error


class Store:
    """A pool of connections for a process that serves.

    Args:
        pool: of asyncpg; connects as it is used, so Postgres may be away when this is made.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    @classmethod
    async def open(cls, database_url: str, *, size: int, timeout_s: float) -> Store:
        """Make one; Postgres need not be there yet."""
        pool = asyncpg.create_pool(
            database_url,
            min_size=0,
            max_size=size,
            timeout=timeout_s,
            command_timeout=timeout_s,
            server_settings={"application_name": "pareta-control"},
        )
        with translated():
            await pool
        return cls(pool, timeout_s=timeout_s)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One connection.

        Raises:
            StoreUnavailable: Postgres can't be reached, or all connections are busy for too long.
        """
        with translated():
            async with self._pool.acquire(timeout=self._timeout_s) as conn:
                yield conn

    async def close(self) -> None:
        """Drop the connections, without waiting for a Postgres that does not answer."""
        self._pool.terminate()
