"""One request as its client saw it: all that a customer could show in a dispute, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.faults.customers import Customer


class End(StrEnum):
    """How it ended for the client."""

    WHOLE = "whole"  # the answer, or the error, came to its end
    BROKEN = "broken"  # the stream told of an error, or the connection broke
    LEFT = "left"  # the client hung up
    REFUSED = "refused"  # no connection: nothing was sent


class Rudeness(StrEnum):
    """When a client hangs up, if it does."""

    POLITE = "polite"
    BEFORE_ANSWER = "before the answer"
    FIRST_BYTE = "first byte"
    MIDDLE = "middle"
    LAST_BYTE = "last byte"


@dataclass(slots=True, eq=False)
class Attempt:
    """One try. Times are of the test's own clock, Unix seconds."""

    tag: str
    """Of the work: what is tried again under an idempotency key has the same."""
    name: str
    """Of this try: the ``x-request-id`` that the client sends."""
    customer: Customer
    key: str
    route: str
    stream: bool
    body: dict[str, Any]
    body_bytes: int
    rudeness: Rudeness = Rudeness.POLITE
    via: str = "raw"
    idempotency_key: str | None = None
    sim_fault: str | None = None
    cached: int = 0
    sent_s: float = 0.0
    ended_s: float = 0.0
    end: End = End.REFUSED
    status: int = 0
    code: str = ""
    request_id: str = ""
    is_replay: bool = False
    has_done: bool = False
    """A stream came to its ``[DONE]``, a whole answer to its last byte."""
    billed_micros: int | None = None
    usage: tuple[int, int] | None = None
    """Prompt and completion tokens, where the answer told."""
    deltas: int = 0
    first_delta_s: float = 0.0
    progress: list[tuple[float, int]] = field(default_factory=list)
    """How many deltas there were at which time."""

    @property
    def finished(self) -> bool:
        """The client has the whole answer."""
        return self.status == 200 and self.has_done and not self.code

    def told(self) -> str:
        """For the evidence."""
        how = f"{self.route}{' streamed' if self.stream else ''} via {self.via}, {self.rudeness}"
        return (
            f"{self.name} (work {self.tag}) of {self.customer.name}: {how}, sim {self.sim_fault or 'well'}; {self.end} "
            f"{self.status} {self.code} {self.request_id} done={self.has_done} billed={self.billed_micros} "
            f"usage={self.usage} deltas={self.deltas} replay={self.is_replay} key={self.idempotency_key is not None} "
            f"sent={self.sent_s:.3f} ended={self.ended_s:.3f}"
        )
