"""Sending requests to vendors: bounded, with deadlines, repeated where that can help.

Floor: control. A vendor's words never get out: what went wrong becomes one of our own sentences. Keys come from the
operator's environment, stand in no log and in no repr.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

import aiohttp
import orjson

from gateway.control.evals.engines import AskFailed, ModelAnswer
from gateway.control.evals.values import Candidate
from gateway.control.vendors.wire import VENDORS, AnswerInvalid, Asked, Vendor

DEADLINE_S: Final = 300.0
"""Of one question with all its repeats."""
CONNECT_S: Final = 10.0
ATTEMPTS: Final = 5
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
CONNECTIONS: Final = 32
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_BUSY: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Access:
    """How a vendor is reached. An empty key: not at all."""

    url: str
    key: str = field(repr=False)


class _Busy(Exception):
    """The vendor asks to come again, after so many seconds if it said."""

    def __init__(self, after_s: float | None) -> None:
        super().__init__()
        self.after_s = after_s


class VendorModels:
    """Vendors' models.

    Args:
        session: for all of them.
        access: by vendor.
    """

    def __init__(self, session: aiohttp.ClientSession, access: Mapping[str, Access]) -> None:
        self._session = session
        self._access = access

    @classmethod
    @asynccontextmanager
    async def open(cls, access: Mapping[str, Access]) -> AsyncIterator[Self]:
        """One for the life of a process."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=DEADLINE_S, connect=CONNECT_S),
            headers={"User-Agent": "pareta-gateway"},
        ) as session:
            yield cls(session, access)

    def is_reachable(self, vendor: str) -> bool:
        """Whether the operator has given a key for it."""
        access = self._access.get(vendor)
        return vendor in VENDORS and access is not None and bool(access.key)

    async def open_model(self, candidate: Candidate) -> VendorModel:
        """A model that can be asked.

        Raises:
            AskFailed: there is no key for its vendor.
        """
        assert candidate.vendor is not None
        if not self.is_reachable(candidate.vendor):
            raise AskFailed("This vendor's models cannot be asked here at the moment.")
        access = self._access[candidate.vendor]
        return VendorModel(self._session, VENDORS[candidate.vendor], access, candidate.model_id)


class VendorModel:
    """One vendor's model. See `gateway.control.evals.engines.Asker`."""

    def __init__(self, session: aiohttp.ClientSession, vendor: Vendor, access: Access, model: str) -> None:
        self._session = session
        self._vendor = vendor
        self._access = access
        self._model = model

    async def ask(self, messages: list[dict[str, Any]], *, most_tokens: int) -> ModelAnswer:
        """One question; repeated while the vendor is busy, for as long as the deadline allows.

        A request whose connection breaks after it was sent is repeated too: it may cost the platform twice, and the
        customer once.
        """
        asked = self._vendor.ask(self._access.key, self._model, messages, most_tokens=most_tokens)
        try:
            async with asyncio.timeout(DEADLINE_S):
                for attempt in range(ATTEMPTS):
                    try:
                        return await self._send(asked)
                    except _Busy as busy:
                        await asyncio.sleep(_pause_s(attempt, busy.after_s))
        except TimeoutError:
            raise AskFailed("The vendor did not answer in time.") from None
        raise AskFailed("The vendor was too busy.")

    async def close(self) -> None:
        """Nothing of its own to close."""

    async def _send(self, asked: Asked) -> ModelAnswer:
        try:
            async with self._session.post(
                self._access.url.rstrip("/") + asked.path,
                data=orjson.dumps(asked.body),
                headers={"Content-Type": "application/json", **asked.headers},
                allow_redirects=False,
            ) as response:
                if response.status in _BUSY:
                    raise _Busy(_seconds(response.headers.get("Retry-After")))
                body = await _read(response)
                if response.status in (401, 403):
                    raise AskFailed("The vendor does not let the platform in at the moment.")
                if response.status != 200:
                    raise AskFailed("The vendor refused this row.")
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError):
            raise _Busy(None) from None
        try:
            said = self._vendor.read(orjson.loads(body))
        except (orjson.JSONDecodeError, AnswerInvalid):
            # Without its usage it cannot be priced, and nothing is guessed.
            raise AskFailed("The vendor's answer could not be read.") from None
        return ModelAnswer(said.text, said.prompt_tokens, said.completion_tokens)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise AskFailed("The vendor's answer was too long.")
    return bytes(data)


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; a date counts as none."""
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None


def _pause_s(attempt: int, after_s: float | None) -> float:
    pause_s = FIRST_PAUSE_S * 2**attempt if after_s is None else after_s
    # Apart, so that all that were refused together do not come together again.
    return min(LONGEST_PAUSE_S, pause_s) + random.random() * 0.25  # noqa: S311
