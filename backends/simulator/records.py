"""What the simulator remembers of each request, for tests that ask what really happened.

Bounded: the latest `KEPT` requests, and totals since the start or the last clearing.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

KEPT = 5_000


class State(StrEnum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"  # the client went away, or the simulator was stopped
    FAILED = "failed"  # refused, or failed as a fault plan wanted


@dataclass(slots=True)
class Record:
    """One request. Times are Unix seconds; tokens are those written to the connection.

    Attributes:
        number: counts requests of this process.
        request_id: the `x-request-id` the client sent.
        connection: number of the TCP connection, to see which requests shared one.
        fields: names of the received JSON fields.
        body: the received fields, without prompts unless the process keeps them.
        disconnected_s: when the client hung up, if it did before the end.
    """

    number: int
    id: str
    route: str
    received_s: float
    connection: int
    request_id: str | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    fields: tuple[str, ...] = ()
    body: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    stream: bool = False
    state: State = State.RUNNING
    status: int = 0
    fault: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    planned_tokens: int = 0
    first_token_s: float | None = None
    ended_s: float | None = None
    disconnected: bool = False
    disconnected_s: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as `/sim/requests` shows it; of a credential only its beginning."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        if "authorization" in headers:
            headers["authorization"] = headers["authorization"][:16] + "…"
        return {**shown, "headers": headers}


@dataclass(slots=True)
class Totals:
    """Sums over all requests that ended, and what was delivered by those that run."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by_route: dict[str, int] = field(default_factory=dict)


class RecordBook:
    """Records of requests, newest kept."""

    def __init__(self) -> None:
        self._kept: deque[Record] = deque(maxlen=KEPT)
        self._live: dict[int, Record] = {}
        self._totals = Totals()

    def open(self, record: Record) -> None:
        """Take in a request that arrived."""
        self._kept.append(record)
        self._live[record.number] = record
        self._totals.requests += 1
        self._totals.by_route[record.route] = self._totals.by_route.get(record.route, 0) + 1

    def close(self, record: Record, state: State, now_s: float) -> None:
        """Note how a request ended; only the first end counts."""
        if self._live.pop(record.number, None) is None:
            return
        record.state = state
        record.ended_s = now_s
        totals = self._totals
        totals.prompt_tokens += record.prompt_tokens
        totals.completion_tokens += record.completion_tokens
        match state:
            case State.FINISHED:
                totals.finished += 1
            case State.CANCELLED:
                totals.cancelled += 1
            case _:
                totals.failed += 1

    def clear(self) -> None:
        """Forget the requests that ended, and start the totals again; running requests stay."""
        self._kept = deque(self._live.values(), maxlen=KEPT)
        self._totals = Totals(requests=len(self._live))

    def newest_first(self) -> Iterator[Record]:
        """The kept records."""
        return reversed(self._kept)

    def live(self) -> Iterator[Record]:
        """Requests that have not ended."""
        return iter(self._live.values())

    def totals(self) -> Totals:
        """Totals, what running requests were delivered so far included."""
        running = list(self._live.values())
        ended = self._totals
        return Totals(
            requests=ended.requests,
            finished=ended.finished,
            cancelled=ended.cancelled,
            failed=ended.failed,
            prompt_tokens=ended.prompt_tokens + sum(record.prompt_tokens for record in running),
            completion_tokens=ended.completion_tokens + sum(record.completion_tokens for record in running),
            by_route=dict(ended.by_route),
        )
