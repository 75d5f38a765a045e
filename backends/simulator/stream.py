"""A streamed answer: a token of each choice whenever the wheel says so.

The usual token (one choice, no fault, one token a time) takes a short path: three byte strings joined, one
write. Everything else goes the general way, event by event.
"""

import time
from collections.abc import Callable

import orjson

from backends.simulator.answer import Choice
from backends.simulator.chunks import DONE, ChunkEncoder
from backends.simulator.connection import Connection
from backends.simulator.options import AFTER_TOKENS, Fault
from backends.simulator.records import Record, State
from backends.simulator.refusal import ENGINE_FAILED, error_object
from backends.simulator.schema import Route
from backends.simulator.wheel import Wheel
from backends.simulator.work import DEFAULT_GIANT_BYTES, Plan, Work

BURST = 64
"""About how many tokens are sent at once when there is no time between them; then others get their turn."""

_EVENT_STREAM = b"text/event-stream; charset=utf-8"


class Stream(Work):
    """The life of one streamed answer."""

    __slots__ = (
        "_at_once",
        "_continuous",
        "_due_s",
        "_encoder",
        "_fragments",
        "_gathered",
        "_head",
        "_itl_s",
        "_last",
        "_parked",
        "_position",
        "_short",
        "_struck",
        "_tail",
    )

    def __init__(
        self, connection: Connection, plan: Plan, record: Record, wheel: Wheel, ended: Callable[[Work, State], None]
    ) -> None:
        super().__init__(connection, plan, record, wheel, ended)
        request = plan.request
        self._encoder = ChunkEncoder(
            request.route,
            plan.answer_id,
            plan.created_s,
            request.model,
            plan.fingerprint,
            len(plan.choices),
            request.prompt_tokens,
        )
        self._continuous = request.continuous_usage and plan.fault is not Fault.NO_USAGE
        self._itl_s = plan.itl_s
        self._due_s = 0.0
        self._position = 0
        self._last = max(choice.tokens for choice in plan.choices)
        self._parked = False
        self._struck = False
        self._gathered: list[bytes] = []
        # What the short path needs, at hand.
        plain = len(plan.choices) == 1 and plan.fault is None
        self._short = plain and plan.itl_s > 0
        self._at_once = plain and plan.itl_s == 0
        self._fragments = plan.choices[0].fragments
        self._head = self._encoder.heads[0]
        self._tail = self._encoder.middle if self._continuous else self._encoder.middle + ChunkEncoder.END

    def accept(self) -> None:
        """Send the head: a real engine does so before the first token is there."""
        head = self.connection.head(200, _EVENT_STREAM, None, b"cache-control: no-cache\r\n")
        if self.plan.fault is Fault.BYTE_BY_BYTE:
            self.connection.dribble(0)
        if self.plan.fault is not Fault.SLOW_HEADERS and self.plan.fault is not Fault.COALESCED:
            self.connection.write(head)
        elif self.plan.fault is Fault.COALESCED:
            self._gathered.append(head)

    def start(self) -> None:
        """Begin to generate: the first token comes after the time to first token."""
        self.record.status = 200
        if self.plan.fault is Fault.SLOW_HEADERS:
            head = self.connection.head(200, _EVENT_STREAM, None, b"cache-control: no-cache\r\n")
            self.send_head(head, self._schedule_first)
        else:
            self._schedule_first()

    def _schedule_first(self) -> None:
        self._due_s = self.wheel.now_s() + self.plan.ttft_s
        if self.plan.ttft_s > 0:
            self.wheel.at(self._due_s, self)
        else:
            self.wake(self._due_s)

    def resumed(self) -> None:
        """Go on with what was held back while the client did not read."""
        if self._parked:
            self._parked = False
            self._due_s = self.wheel.now_s()
            self.wheel.at(self._due_s, self)

    def wake(self, now_s: float) -> None:
        """Send the token that is due."""
        if self.ended:
            return
        if self.connection.paused:
            self._parked = True
            return
        position = self._position
        if self._short and 0 < position < self._last - 1:
            if self._continuous:
                usage = self._encoder.usage(position + 1)
                event = self._head + self._fragments[position] + self._tail + usage + ChunkEncoder.END
            else:
                event = self._head + self._fragments[position] + self._tail
            self.connection.write(self.connection.chunk(event))
            self._position = self.record.completion_tokens = position + 1
            self._due_s = due_s = self._due_s + self._itl_s
            self.wheel.at(due_s, self)
            return
        self._general(now_s)

    def _general(self, now_s: float) -> None:
        """Send what is due, with openings, endings and faults."""
        events: list[bytes] = []
        if self._position == 0 and self.record.first_token_s is None:
            self._open(events)
        if self._at_once:
            self._run(events)
        for _ in range(1 if self._itl_s > 0 else 2 if self._at_once else BURST):
            if self._strikes_now():
                self._struck = True
                if self._strike(events):
                    return
            if self._position > self._last:
                break
            self._step(events)
        if self._position > self._last:
            self._close(events)
            return
        self._emit(events)
        self._due_s += self._itl_s
        self.wheel.at(self._due_s, self)

    def _run(self, events: list[bytes]) -> None:
        """A burst of tokens of an only choice, without its last, which may close the choice."""
        first, upto = self._position, min(self._position + BURST, self._last - 1)
        if upto <= first:
            return
        head, tail = self._head, self._tail
        if self._continuous:
            usage, end = self._encoder.usage, ChunkEncoder.END
            events += [
                head + fragment + tail + usage(count) + end
                for count, fragment in enumerate(self._fragments[first:upto], first + 1)
            ]
        else:
            events += [head + fragment + tail for fragment in self._fragments[first:upto]]
        self._position = self.record.completion_tokens = upto

    def _strikes_now(self) -> bool:
        if self._struck or self.plan.fault not in AFTER_TOKENS:
            return False
        return self._position >= min(self.plan.strikes_after, self._last)

    def _open(self, events: list[bytes]) -> None:
        self.record.first_token_s = time.time()
        self.record.prompt_tokens = self.plan.request.prompt_tokens
        if self.plan.request.route is Route.CHAT:
            usage = self._encoder.usage(0) if self._continuous else b""
            events += [self._encoder.role(choice.index, usage) for choice in self.plan.choices]

    def _step(self, events: list[bytes]) -> None:
        """The next token of each choice, and the closing chunk of those that have no more."""
        position = self._position
        for choice in self.plan.choices:
            if position < choice.tokens:
                self.record.completion_tokens += 1
                events.append(self._chunk(choice, position))
            elif position == choice.tokens and not choice.ends_with_token:
                usage = self._encoder.usage(choice.tokens) if self._continuous else b""
                events.append(self._encoder.finish(choice, self._encoder.empty_fragment(), usage))
        self._position = position + 1
        if self._position == self._last and all(c.ends_with_token or c.tokens < self._last for c in self.plan.choices):
            self._position += 1  # nothing is left for a step of its own

    def _chunk(self, choice: Choice, position: int) -> bytes:
        encoder = self._encoder
        usage = encoder.usage(position + 1) if self._continuous else b""
        if choice.ends_with_token and position == choice.tokens - 1:
            return encoder.finish(choice, choice.fragments[position], usage)
        return encoder.heads[choice.index] + choice.fragments[position] + encoder.middle + usage + ChunkEncoder.END

    def _close(self, events: list[bytes]) -> None:
        """The end of the stream: usage if wanted, the mark, HTTP's last chunk."""
        usage = self.plan.usage()
        if self.plan.request.include_usage and usage is not None:
            events.append(self._encoder.final_usage(usage))
        if self.plan.fault is not Fault.NO_DONE:
            events.append(DONE)
        self._finish(events)

    def _finish(self, events: list[bytes]) -> None:
        last = b"" if self.plan.fault is Fault.NO_FINAL_CHUNK else self.connection.last_chunk()
        match self.plan.fault:
            case Fault.COALESCED:
                head, *earlier = self._gathered
                self.connection.write(head + self.connection.chunk(b"".join(earlier + events)) + last)
            case Fault.BYTE_BY_BYTE:
                self._emit(events)
                self.connection.write(last)
                dribbler = self.connection.dribbler
                if dribbler is not None:
                    dribbler.then(self.complete)
                return
            case _:
                self._emit(events, last)
        self.complete()

    def _strike(self, events: list[bytes]) -> bool:
        """A fault in the middle. True if it ended the stream's ordinary course."""
        match self.plan.fault:
            case Fault.ERROR_EVENT:
                error = error_object(500, ENGINE_FAILED)
                self._emit([*events, b"data: " + orjson.dumps(error) + b"\n\n", DONE], self.connection.last_chunk())
                self.end(State.FAILED)
                self.connection.done()
                return True
            case Fault.MALFORMED_CHUNK:
                events.append(self._encoder.heads[0] + b'"delta":{"content":" brok\n\n')
                return False
            case Fault.GIANT_EVENT:
                wanted = self.plan.options.event_bytes
                size = DEFAULT_GIANT_BYTES if wanted is None else wanted
                fragment = self.plan.choices[0].fragments[0] if self.plan.choices[0].fragments else b'"delta":{}'
                padding = b',"padding":"' + b"x" * size + b'"'
                events.append(self._encoder.heads[0] + fragment + padding + self._encoder.middle + ChunkEncoder.END)
                return False
            case _:
                self._emit(events)
                return self.strike()

    def _emit(self, events: list[bytes], last: bytes = b"") -> None:
        """Write events in one go, each an HTTP chunk of its own, in the shape a fault wants."""
        match self.plan.fault:
            case Fault.COALESCED:
                self._gathered += events
                return
            case Fault.BYTE_BY_BYTE:
                dribbler = self.connection.dribbler
                if dribbler is not None:
                    chunk = self.connection.chunk
                    dribbler.add([chunk(bytes((byte,))) for event in events for byte in event])
                return
            case Fault.CRLF:
                events = [event[:-2] + b"\r\n\r\n" for event in events]
            case Fault.SPACE_NEWLINES:
                events = [event[:-2] + b" \n\n" for event in events]
            case Fault.COMMENTS:
                events = [part for event in events for part in (b": keep-alive\n\n", event)]
        self.connection.write(self.connection.chunks(events) + last)
