"""What an adapter to a vendor's chat API can do: write a request, read an answer, read a refusal.

Floor: control (pure). Tokens are what the vendor bills: all input, cached or not, and all output, thinking included. A
vendor's own words are read to decide, and go no further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from gateway.control.vendors.conversation import Conversation

FinishReason = Literal["stop", "length", "content_filter", "other"]
MAX_TOKENS: Final = 1 << 31
"""No answer counts as many."""


class AnswerInvalid(ValueError):
    """A vendor's answer has not the form that the vendor documents, or does not say what it is billed as."""


class FailureKind(StrEnum):
    """Why there is no answer.

    ``SHUT_OUT``: the operator's account is not let in: the key, the quota, the address. ``REFUSED``: this request, for
    good. ``BUSY``, ``DOWN``: perhaps not in a moment. ``TIMED_OUT``: the deadline. ``UNREADABLE``: there is an answer,
    and it can be neither read nor priced.
    """

    SHUT_OUT = "shut_out"
    REFUSED = "refused"
    BUSY = "busy"
    DOWN = "down"
    TIMED_OUT = "timed_out"
    UNREADABLE = "unreadable"

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be answered a moment later."""
        return self in (FailureKind.BUSY, FailureKind.DOWN)


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How to answer. ``temperature``: None is the vendor's own."""

    most_tokens: int
    temperature: float | None = 0.0


@dataclass(frozen=True, slots=True)
class VendorRequest:
    """A request to a vendor. Headers and body hold the key and the customer's text, so they are never shown."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class VendorAnswer:
    """What a vendor's model answered, and the tokens that this is billed as."""

    text: str = field(repr=False)
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none.

    Attributes:
        after_s: when to come again, if the body says so.
        names_temperature: what is wrong is that a temperature was sent.
    """

    kind: FailureKind
    after_s: float | None = None
    names_temperature: bool = False


class Vendor(Protocol):
    """One vendor's chat API."""

    default_url: str

    def write(self, key: str, model: str, asked: Conversation, settings: CallSettings) -> VendorRequest:
        """A request."""

    def read(self, body: Any) -> VendorAnswer:
        """Its answer, of status 200.

        Raises:
            AnswerInvalid.
        """

    def read_refusal(self, status: int, body: Any) -> Refusal:
        """Its answer of any other status. ``body``: its JSON; None if it is none."""


def kind_of(status: int) -> FailureKind:
    """What a status means at every vendor."""
    match status:
        case 408 | 409 | 429 | 503 | 529:
            return FailureKind.BUSY
        case 401 | 402 | 403:
            return FailureKind.SHUT_OUT
        case _ if status >= 500:
            return FailureKind.DOWN
        case _ if status >= 400:
            return FailureKind.REFUSED
        case _:
            # A redirect, or a success without an answer: the operator's address is not that of the API.
            return FailureKind.SHUT_OUT


def error_of(body: Any) -> Mapping[str, Any]:
    """The object ``error``, which all three have; empty without one."""
    error = body.get("error") if isinstance(body, Mapping) else None
    return error if isinstance(error, Mapping) else {}


def says(error: Mapping[str, Any], words: str) -> bool:
    """Whether a vendor's message has these words."""
    message = error.get("message")
    return isinstance(message, str) and words in message.lower()


def tokens(value: object) -> int:
    """A count of tokens. Raises: AnswerInvalid: it is none, as also where it is missing."""
    if type(value) is not int or not 0 <= value < MAX_TOKENS:
        raise AnswerInvalid
    return value


def tokens_if_any(value: object) -> int:
    """A count that may be missing or null, which is none."""
    return 0 if value is None else tokens(value)


def endpoint(root: str, path: str) -> str:
    """The address of a path below an API's root, which may end in the version that the path begins with.

    Operators have ``https://api.openai.com/v1`` in their environment as often as ``https://api.openai.com``.
    """
    version = "/" + path.split("/")[1]
    return root.rstrip("/").removesuffix(version).rstrip("/") + path
