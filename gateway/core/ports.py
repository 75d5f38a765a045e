"""What the hot path needs of the world, as ports; the edges fulfil them, `gateway.app` joins them.

Floor: core (pure).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway.core.exchange import Exchange
from gateway.core.state import Endpoint, Key


class StateUnavailable(Exception):
    """Keys can't be looked up at the moment; the request gets 503."""


class StateView(Protocol):
    """The platform's state as this process knows it; only `fetch_key` waits."""

    @property
    def pepper(self) -> bytes:
        """The installation's secret that marks its own key ids."""

    def endpoint(self, endpoint_id: str) -> Endpoint | None:
        """An endpoint that is not deleted."""

    def endpoints_of(self, org_id: str) -> Sequence[Endpoint]:
        """An organization's endpoints, oldest first."""

    def endpoint_named(self, org_id: str, name: str) -> Endpoint | None:
        """The endpoint that an organization calls so."""

    def endpoints_serving(self, org_id: str, alias: str) -> Sequence[Endpoint]:
        """An organization's endpoints of a model alias, oldest first."""

    def key(self, key_id: str) -> Key | None:
        """A key that is remembered and fresh enough."""

    async def fetch_key(self, key_id: str) -> Key | None:
        """Look a key up.

        Raises:
            StateUnavailable: Postgres could not be asked in time.
        """


class Recorder(Protocol):
    """Takes note of what happened: metrics and the request log."""

    def closed(self, exchange: Exchange, now_s: float) -> None:
        """An exchange is over."""

    @property
    def relayed(self) -> Callable[[float], None]:
        """To be called when content was passed on, with the seconds since the previous piece."""


class PlatformUnavailable(Exception):
    """The control process does not answer; nothing is known to have happened."""


@dataclass(frozen=True, slots=True)
class PlatformAsk:
    """A request for the control process, of a caller who was let in.

    Attributes:
        target: path and query as the client sent them.
        content_type: of the body, as the client sent it.
    """

    method: str
    target: str
    body: bytes
    content_type: str
    request_id: str
    key: Key
    idempotency_key: str | None = None


class PlatformAnswer(Protocol):
    """An answer of the control process whose head is here."""

    status: int
    content_type: bytes
    headers: Mapping[str, str]
    """Those that a client gets, by their names; no length and no type."""
    error_code: str | None
    """What the refusal is called in the log."""
    is_stream: bool

    async def read(self) -> bytes:
        """The whole body. Raises: PlatformUnavailable: it broke off or is too large."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The events as they come. Raises: PlatformUnavailable: they broke off."""


class Platform(Protocol):
    """The way to the control process."""

    def ask(self, ask: PlatformAsk) -> AbstractAsyncContextManager[PlatformAnswer]:
        """Pass a request on.

        Raises:
            PlatformUnavailable: it does not answer.
        """


class Uses(Protocol):
    """Who hears of the use of endpoints that may be put to sleep. None of it waits."""

    def used(self, endpoint_id: str) -> None:
        """A request begins."""

    def wanted(self, endpoint_id: str) -> None:
        """Somebody calls an endpoint that sleeps: wake it."""


class Samples(Protocol):
    """Who has a share of live answers judged. None of it waits."""

    @property
    def is_wanted(self) -> bool:
        """Whether the answer to a request that begins now shall be judged."""

    def take(self, endpoint_id: str, messages: object, body: bytes, *, stream: bool) -> None:
        """An answer is complete: as the client got it, JSON or the events of a stream."""
