"""How one answer should behave: the `sim` object of a request, or a plan posted to `/sim/faults`.

Pure: reads JSON values, refuses wrong ones with a sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from backends.simulator.vocabulary import VOCABULARIES


class Fault(StrEnum):
    """The ways an answer can go wrong on demand. `k` is `after_tokens`.

    Where a fault is about streams and the answer is not one, the nearest thing happens: "mid-stream" is in the
    middle of the body, and what has no counterpart (a missing `[DONE]`) changes nothing.
    """

    REFUSE = "refuse"  # the connection is reset as soon as the request's head has been read
    CLOSE_BEFORE_HEAD = "close_before_head"  # the whole request is read, then FIN without a byte
    RESET_BEFORE_HEAD = "reset_before_head"  # the same with RST
    HANG_BEFORE_HEAD = "hang_before_head"  # no byte ever comes
    SLOW_HEADERS = "slow_headers"  # the head comes byte by byte, over `seconds` (default 1)
    CLOSE_MID_STREAM = "close_mid_stream"  # FIN after k tokens
    RESET_MID_STREAM = "reset_mid_stream"  # RST after k tokens
    HANG_MID_STREAM = "hang_mid_stream"  # silence after k tokens, the connection stays open
    ERROR_EVENT = "error_event"  # after k tokens `data: {"error": …}` and `[DONE]`, as vLLM does
    MALFORMED_CHUNK = "malformed_chunk"  # after k tokens one event whose JSON is cut short; then it goes on
    GIANT_EVENT = "giant_event"  # after k tokens one event whose text has `event_bytes` (default 8 MiB)
    BAD_REQUEST = "400"
    RATE_LIMITED = "429"  # with `Retry-After: retry_after_s` (default 1)
    SERVER_ERROR = "500"
    BAD_GATEWAY_HTML = "502"  # an HTML page, as a proxy in front would send
    OVERLOADED = "503"
    WRONG_CONTENT_TYPE = "html"  # status 200, text/html
    EMPTY_BODY = "empty"  # status 200, JSON or event-stream type, no bytes
    NO_USAGE = "no_usage"  # usage is never sent, whatever was asked
    BAD_USAGE = "bad_usage"  # usage with negative and non-integer counts
    CRLF = "crlf"  # events end with \r\n\r\n
    SPACE_NEWLINES = "space_newlines"  # events end with " \n\n"
    COMMENTS = "comments"  # `: keep-alive` comment lines between events
    NO_DONE = "no_done"  # the stream ends cleanly, without [DONE]
    NO_FINAL_CHUNK = "no_final_chunk"  # after [DONE] the connection closes without HTTP's last chunk
    CLOSE_AFTER_ANSWER = "close_after_answer"  # a whole answer, then the kept-alive connection is closed
    CLOSE_WHEN_REUSED = "close_when_reused"  # FIN without a byte, but only if the connection served before
    BYTE_BY_BYTE = "byte_by_byte"  # every byte is a write (and in streams an HTTP chunk) of its own
    COALESCED = "coalesced"  # the whole stream in one write and one HTTP chunk, when it is complete


BEFORE_ANSWER = frozenset(
    {
        Fault.REFUSE,
        Fault.CLOSE_BEFORE_HEAD,
        Fault.RESET_BEFORE_HEAD,
        Fault.HANG_BEFORE_HEAD,
        Fault.BAD_REQUEST,
        Fault.RATE_LIMITED,
        Fault.SERVER_ERROR,
        Fault.BAD_GATEWAY_HTML,
        Fault.OVERLOADED,
        Fault.WRONG_CONTENT_TYPE,
        Fault.EMPTY_BODY,
        Fault.CLOSE_WHEN_REUSED,
    }
)
"""Faults that take the place of the answer; the others spoil one that is on its way."""

AFTER_TOKENS = frozenset(
    {
        Fault.CLOSE_MID_STREAM,
        Fault.RESET_MID_STREAM,
        Fault.HANG_MID_STREAM,
        Fault.ERROR_EVENT,
        Fault.MALFORMED_CHUNK,
        Fault.GIANT_EVENT,
    }
)
"""Faults that strike when `after_tokens` tokens (of each choice) were sent."""


class BadOption(ValueError):
    """A wrong `sim` option; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class SimOptions:
    """Behaviour of one answer; `None` leaves it to the process's settings.

    Attributes:
        ttft_ms, itl_ms: times, not divided by the process's speed.
        tokens: exact natural length of the answer.
        text: exact text of the answer, instead of a drawn one.
        seed: joins the seed of the request.
        vocabulary: one of `VOCABULARIES`.
        cached_tokens: prompt tokens reported as read from the cache.
        reasoning_tokens: tokens of reasoning before the answer, counted in its completion tokens.
        overrun: take no notice of the request's `max_tokens`.
        tool_call: call the first tool even where `tool_choice` leaves the choice.
        fail: a `Fault`.
        after_tokens: when a mid-stream fault strikes.
        seconds: how long a slow head takes.
        retry_after_s: of a 429 or 503.
        event_bytes: size of a giant event.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None
    tokens: int | None = None
    text: str | None = None
    seed: int | None = None
    vocabulary: str | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    overrun: bool | None = None
    tool_call: bool | None = None
    fail: Fault | None = None
    after_tokens: int | None = None
    seconds: float | None = None
    retry_after_s: int | None = None
    event_bytes: int | None = None

    def over(self, below: "SimOptions") -> "SimOptions":
        """These options, and `below`'s where these are silent."""
        if self == _NONE:
            return below
        return replace(below, **{name: value for name in _FIELDS if (value := getattr(self, name)) is not None})


_NONE = SimOptions()
_FIELDS = tuple(SimOptions.__dataclass_fields__)
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "ttft_ms": (0, 3_600_000),
    "itl_ms": (0, 3_600_000),
    "seconds": (0, 3_600),
}
_INTEGERS: Mapping[str, tuple[int, int]] = {
    "tokens": (0, 1_000_000),
    "seed": (-(2**63), 2**63),
    "cached_tokens": (0, 10_000_000),
    "reasoning_tokens": (0, 1_000_000),
    "after_tokens": (0, 1_000_000),
    "retry_after_s": (0, 86_400),
    "event_bytes": (1, 256 * 1024 * 1024),
}


def parse_options(value: Any) -> SimOptions:
    """Read a `sim` object.

    Raises:
        BadOption: for an unknown name or a wrong value.
    """
    if not isinstance(value, dict):
        raise BadOption("`sim` must be an object.")
    return SimOptions(**{name: _check(name, item) for name, item in value.items() if item is not None})


def _check(name: str, value: Any) -> Any:
    if name == "fail":
        return parse_fault(value)
    if name in _NUMBERS:
        low, high = _NUMBERS[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise BadOption(f"`sim.{name}` must be a number from {low} to {high}.")
    elif name in _INTEGERS:
        low, high = _INTEGERS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadOption(f"`sim.{name}` must be an integer from {low} to {high}.")
    elif name == "vocabulary":
        if value not in VOCABULARIES:
            raise BadOption(f"`sim.vocabulary` must be one of {', '.join(VOCABULARIES)}.")
    elif name == "text":
        if not isinstance(value, str):
            raise BadOption("`sim.text` must be a string.")
    elif name in ("overrun", "tool_call"):
        if not isinstance(value, bool):
            raise BadOption(f"`sim.{name}` must be true or false.")
    else:
        raise BadOption(f"`sim.{name}` is not known; there are {', '.join(_FIELDS)}.")
    return value


def parse_fault(value: Any) -> Fault:
    """Read the name of a fault; a status may be a number.

    Raises:
        BadOption: if there is no such fault.
    """
    try:
        return Fault(str(value))
    except ValueError:
        raise BadOption(f"There is no fault {value!r}; there are {', '.join(Fault)}.") from None
