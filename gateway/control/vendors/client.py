"""Sending requests to vendors: bounded, with deadlines, repeated where that can help.

Floor: control. A vendor's words never get out: what went wrong becomes one of our own sentences. Keys come from the
operator's environment, stand in no log and in no repr.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import aiohttp
import orjson

from gateway.control.evals.engines import AskFailed, ModelAnswer
from gateway.control.evals.values import Candidate
from gateway.control.vendors.conversation import Conversation, InputRefused, read_conversation
from gateway.control.vendors.port import (
    AnswerInvalid,
    CallSettings,
    FailureKind,
    Refusal,
    Vendor,
    VendorAnswer,
    endpoint,
)
from gateway.control.vendors.retries import ATTEMPTS, pause_s, retry_after_s
from gateway.control.vendors.wire import VENDORS

DEADLINE_S: Final = 300.0
"""Of one question of an eval with all its repeats."""
CONNECT_S: Final = 10.0
CONNECTIONS: Final = 32
"""To one vendor; more questions wait for their turn, within their deadlines."""
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_REFUSAL_BYTES: Final = 64 * 1024
log = logging.getLogger("pareta.vendors")

_SENTENCES: Final = {
    FailureKind.SHUT_OUT: "The vendor does not let the platform in at the moment.",
    FailureKind.REFUSED: "The vendor refused this row.",
    FailureKind.BUSY: "The vendor was too busy.",
    FailureKind.DOWN: "The vendor could not be reached.",
    FailureKind.TIMED_OUT: "The vendor did not answer in time.",
    FailureKind.UNREADABLE: "The vendor's answer could not be read.",
}


class VendorFailed(AskFailed):
    """A vendor's model gave no answer that counts.

    Attributes:
        kind: why.
        after_s: when to come again, if the vendor said.
        may_be_billed: the request was sent and it is not known what became of it: the vendor may bill it.
    """

    def __init__(self, kind: FailureKind, *, after_s: float | None = None, may_be_billed: bool = False) -> None:
        super().__init__(_SENTENCES[kind])
        self.kind = kind
        self.after_s = after_s
        self.may_be_billed = may_be_billed


class _TemperatureRefused(Exception):
    """This model wants to be asked without one."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a vendor is reached. An empty key: not at all."""

    url: str
    key: str = field(repr=False)


class VendorModels:
    """Vendors' models.

    Args:
        session: for all of them.
        access: by vendor.
    """

    def __init__(self, session: aiohttp.ClientSession, access: Mapping[str, Access]) -> None:
        self._lines = {
            name: _Line(session, name, VENDORS[name], one) for name, one in access.items() if name in VENDORS
        }

    @classmethod
    @asynccontextmanager
    async def open(cls, access: Mapping[str, Access], *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Self]:
        """One for the life of a process. ``tls``: whom to trust; None is whom the system trusts."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=CONNECTIONS, ssl=tls or True),
            # No bound on the wait for a connection (``connect``): whoever waits for a turn has a deadline of its own.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            headers={"User-Agent": "pareta-gateway"},
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            yield cls(session, access)

    def available(self) -> frozenset[str]:
        """The vendors that the operator has given a key for."""
        return frozenset(name for name, line in self._lines.items() if line.access.key)

    def is_reachable(self, vendor: str) -> bool:
        """Whether the operator has given a key for it."""
        return vendor in self.available()

    async def open_model(self, candidate: Candidate) -> VendorModel:
        """A model that can be asked.

        Raises:
            AskFailed: there is no key for its vendor.
        """
        assert candidate.vendor is not None
        if not self.is_reachable(candidate.vendor):
            raise AskFailed("This vendor's models cannot be asked here at the moment.")
        return VendorModel(self._lines[candidate.vendor], candidate.model_id)


class VendorModel:
    """One vendor's model. See `gateway.control.evals.engines.Asker`."""

    def __init__(self, line: _Line, model: str) -> None:
        self._line = line
        self._model = model

    async def ask(self, messages: list[dict[str, Any]], *, most_tokens: int) -> ModelAnswer:
        """One question of an eval, decided greedily where the model can be told to.

        A request whose connection breaks after it was sent is repeated too: it may cost the platform twice, and the
        customer once.

        Raises:
            VendorFailed.
        """
        said = await self.complete(
            messages,
            CallSettings(most_tokens),
            deadline_s=asyncio.get_running_loop().time() + DEADLINE_S,
            may_bill_twice=True,
        )
        return ModelAnswer(said.text, said.prompt_tokens, said.completion_tokens)

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        settings: CallSettings,
        *,
        deadline_s: float,
        may_bill_twice: bool = False,
    ) -> VendorAnswer:
        """Complete a chat; repeated while the vendor is busy or away, for as long as the deadline allows.

        Args:
            messages: in OpenAI's form; see `gateway.control.vendors.conversation`.
            deadline_s: on the loop's clock.
            may_bill_twice: repeat also what was sent and may have been answered.

        Raises:
            VendorFailed.
        """
        try:
            asked = read_conversation(messages)
        except InputRefused:
            raise VendorFailed(FailureKind.REFUSED) from None
        line, loop = self._line, asyncio.get_running_loop()
        attempt = 0
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    return await line.send_either_way(self._model, asked, settings)
            except TimeoutError:
                raise VendorFailed(FailureKind.TIMED_OUT, may_be_billed=True) from None
            except VendorFailed as failure:
                pause = pause_s(attempt, failure.after_s, chance=random.random())  # noqa: S311
                attempt += 1
                is_hopeless = not failure.kind.may_pass or (failure.may_be_billed and not may_bill_twice)
                # Who would come too late anyway says so now.
                if is_hopeless or attempt == ATTEMPTS or loop.time() + pause >= deadline_s:
                    raise
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Nothing of its own to close."""


class _Line:
    """The way to one vendor.

    Attributes:
        access: the operator's.
    """

    def __init__(self, session: aiohttp.ClientSession, name: str, vendor: Vendor, access: Access) -> None:
        self.access = access
        self._session = session
        self._name = name
        self._vendor = vendor
        # Reasoning models mostly have no temperature; which those are, only the vendor knows.
        self._without_temperature: set[str] = set()
        self._has_warned = False

    async def send_either_way(self, model: str, asked: Conversation, settings: CallSettings) -> VendorAnswer:
        """Send once; a second time if all that was wrong with the first is that it had a temperature."""
        plain = replace(settings, temperature=None)
        if settings.temperature is not None and model not in self._without_temperature:
            try:
                return await self._send(model, asked, settings)
            except _TemperatureRefused:
                pass
            answer = await self._send(model, asked, plain)
            self._without_temperature.add(model)
            return answer
        return await self._send(model, asked, plain)

    async def _send(self, model: str, asked: Conversation, settings: CallSettings) -> VendorAnswer:
        request = self._vendor.write(self.access.key, model, asked, settings)
        try:
            async with self._session.post(
                endpoint(self.access.url, request.path),
                data=orjson.dumps(request.body),
                headers={"Content-Type": "application/json", **request.headers},
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    # It was answered and not billed, so from here on a broken connection changes nothing.
                    raise await self._refused(response, has_temperature=settings.temperature is not None)
                body = await _read(response, MAX_ANSWER_BYTES)
        except (aiohttp.ClientSSLError, aiohttp.InvalidURL):
            self._warn("shows no certificate that is trusted, or has no address")
            raise VendorFailed(FailureKind.SHUT_OUT) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            raise VendorFailed(FailureKind.DOWN) from None
        except (aiohttp.ClientError, OSError):
            # An answer that ended early was billed. One that never began may have been.
            raise VendorFailed(FailureKind.DOWN, may_be_billed=True) from None
        if body is None:
            raise VendorFailed(FailureKind.UNREADABLE, may_be_billed=True)
        try:
            answer = self._vendor.read(orjson.loads(body))
        except (orjson.JSONDecodeError, AnswerInvalid):
            # Without its usage it cannot be priced, and nothing is guessed.
            raise VendorFailed(FailureKind.UNREADABLE, may_be_billed=True) from None
        self._has_warned = False
        return answer

    async def _refused(self, response: aiohttp.ClientResponse, *, has_temperature: bool) -> Exception:
        """What an answer of another status than 200 comes to."""
        refusal = self._vendor.read_refusal(response.status, await _json_if_any(response))
        if refusal.names_temperature and has_temperature:
            return _TemperatureRefused()
        if refusal.kind is FailureKind.SHUT_OUT:
            self._warn(f"answers {response.status}: look at its key, its quota and its address")
        return VendorFailed(refusal.kind, after_s=_after_s(refusal, response))

    def _warn(self, what: str) -> None:
        """Tell the operator, once until the vendor answers again."""
        if not self._has_warned:
            self._has_warned = True
            log.warning("The vendor %s %s.", self._name, what)


def _after_s(refusal: Refusal, response: aiohttp.ClientResponse) -> float | None:
    """The later of what header and body say."""
    headers = response.headers
    told = (refusal.after_s, retry_after_s(headers.get("Retry-After"), answered=headers.get("Date")))
    return max((one for one in told if one is not None), default=None)


async def _read(response: aiohttp.ClientResponse, most_bytes: int) -> bytes | None:
    """A body; None if it is larger. Bytes count as they are unpacked."""
    data = bytearray()
    async for piece in response.content.iter_any():
        data += piece
        if len(data) > most_bytes:
            return None
    return bytes(data)


async def _json_if_any(response: aiohttp.ClientResponse) -> Any:
    try:
        body = await _read(response, MAX_REFUSAL_BYTES)
        return None if body is None else orjson.loads(body)
    except (aiohttp.ClientError, OSError, orjson.JSONDecodeError):
        return None
