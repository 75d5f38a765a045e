"""One request that is being answered: what streamed and whole answers share.

A piece of work takes a slot of the engine, is woken by the wheel when something is due, and ends exactly once:
finished, cancelled by the client's going away, or failed as a fault wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backends.simulator.answer import Choice
from backends.simulator.chunks import bad_usage_object, usage_object
from backends.simulator.connection import Connection
from backends.simulator.options import Fault, SimOptions
from backends.simulator.records import Record, State
from backends.simulator.schema import GenerationRequest
from backends.simulator.wheel import Wheel

DEFAULT_AFTER_TOKENS = 3
DEFAULT_SLOW_HEAD_S = 1.0
DEFAULT_GIANT_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class Plan:
    """All that was decided about one answer before it starts."""

    request: GenerationRequest
    choices: list[Choice]
    options: SimOptions
    answer_id: str
    created_s: int
    fingerprint: str
    ttft_s: float
    itl_s: float

    @property
    def fault(self) -> Fault | None:
        """What shall go wrong."""
        return self.options.fail

    @property
    def strikes_after(self) -> int:
        """Tokens of each choice before a mid-stream fault."""
        after = self.options.after_tokens
        return DEFAULT_AFTER_TOKENS if after is None else after

    def usage(self) -> dict[str, Any] | None:
        """Usage of the whole answer, or None where a fault hides it."""
        if self.fault is Fault.NO_USAGE:
            return None
        if self.fault is Fault.BAD_USAGE:
            return bad_usage_object()
        reasoning = sum(len(choice.reasoning) for choice in self.choices)
        return usage_object(
            self.request.prompt_tokens,
            sum(choice.tokens for choice in self.choices),
            cached_tokens=self.cached_tokens,
            reasoning_tokens=reasoning if self.options.reasoning_tokens else None,
        )

    @property
    def cached_tokens(self) -> int | None:
        """Cached prompt tokens to report, never more than the prompt has."""
        cached = self.options.cached_tokens
        return None if cached is None else min(cached, self.request.prompt_tokens)


class Work:
    """The life of one answer on its connection."""

    __slots__ = ("_ended", "connection", "ended", "plan", "record", "wheel")

    def __init__(
        self, connection: Connection, plan: Plan, record: Record, wheel: Wheel, ended: "Callable[[Work, State], None]"
    ) -> None:
        self.connection = connection
        self.plan = plan
        self.record = record
        self.wheel = wheel
        self.ended = False
        self._ended = ended
        connection.answer = self

    def accept(self) -> None:
        """The request was let in, maybe to wait for a slot."""

    def start(self) -> None:
        """The slot is there: begin to generate."""
        raise NotImplementedError

    def wake(self, now_s: float) -> None:
        """Something is due."""
        raise NotImplementedError

    def resumed(self) -> None:
        """The client reads again."""

    def disconnected(self) -> None:
        """The client went away: stop at once."""
        if not self.ended:
            self.record.disconnected = True
            self.end(State.CANCELLED)

    def end(self, state: State) -> None:
        """Give the slot back and close the record; only the first end counts."""
        if not self.ended:
            self.ended = True
            self._ended(self, state)

    def complete(self) -> None:
        """The answer was sent whole."""
        self.end(State.FINISHED)
        fault = self.plan.fault
        if fault is Fault.NO_FINAL_CHUNK or fault is Fault.CLOSE_AFTER_ANSWER:
            self.connection.answer = None
            self.connection.close()
            return
        self.connection.undribble()
        self.connection.done()

    def strike(self) -> bool:
        """Do the fault that ends an answer in its middle; False if it is not one of those."""
        match self.plan.fault:
            case Fault.CLOSE_MID_STREAM:
                self.fail()
                self.connection.close()
            case Fault.RESET_MID_STREAM:
                # What was written lies in the kernel still; a reset would destroy it before the client reads it.
                self.fail()
                self.wheel.at(self.wheel.now_s() + 0.02, _Reset(self.connection))
            case Fault.HANG_MID_STREAM:
                pass  # nothing is due any more, until the client goes away
            case _:
                return False
        return True

    def fail(self) -> None:
        """End as a fault wanted."""
        self.connection.answer = None
        self.end(State.FAILED)

    def send_head(self, head: bytes, then: Callable[[], None]) -> None:
        """Send the response head, slowly if a fault wants that, then go on."""
        if self.plan.fault is not Fault.SLOW_HEADERS:
            self.connection.write(head)
            then()
            return
        seconds = self.plan.options.seconds
        total_s = DEFAULT_SLOW_HEAD_S if seconds is None else seconds
        dribbler = self.connection.dribble(total_s / len(head))
        dribbler.add([bytes((byte,)) for byte in head])

        def go_on() -> None:
            self.connection.undribble()
            then()

        dribbler.then(go_on)


class _Reset:
    """Resets a connection a little later."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def wake(self, now_s: float) -> None:
        """It is time."""
        self._connection.reset()
