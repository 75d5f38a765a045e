"""An answer that is not streamed: it comes as one body when its last token would have come."""

import time

import orjson

from backends.simulator.chunks import whole_body
from backends.simulator.options import AFTER_TOKENS, Fault
from backends.simulator.records import State
from backends.simulator.refusal import ENGINE_FAILED, error_object
from backends.simulator.work import DEFAULT_GIANT_BYTES, Work

_JSON = b"application/json"


class Whole(Work):
    """The life of one whole answer."""

    __slots__ = ()

    def start(self) -> None:
        """Begin to generate: the answer is ready when its longest choice is."""
        plan = self.plan
        longest = max(choice.tokens for choice in plan.choices)
        duration_s = plan.ttft_s + plan.itl_s * max(0, longest - 1)
        if duration_s > 0:
            self.wheel.at(self.wheel.now_s() + duration_s, self)
        else:
            self.wake(0.0)

    def wake(self, now_s: float) -> None:
        """The answer is ready."""
        if self.ended:
            return
        plan, record = self.plan, self.record
        body = self._body()
        record.status = 200
        record.first_token_s = time.time()
        if plan.fault in AFTER_TOKENS and self._spoil(body):
            return
        record.prompt_tokens = plan.request.prompt_tokens
        record.completion_tokens = record.planned_tokens
        if plan.fault is None:
            self.connection.write(self.connection.head(200, _JSON, len(body)) + body)
            self.complete()
        elif plan.fault is Fault.BYTE_BY_BYTE:
            dribbler = self.connection.dribble(0)
            self.connection.write(self.connection.head(200, _JSON, len(body)) + body)
            dribbler.then(self.complete)
        else:
            self.send_head(self.connection.head(200, _JSON, len(body)), lambda: self._send(body))

    def _send(self, body: bytes) -> None:
        self.connection.write(body)
        self.complete()

    def _body(self) -> bytes:
        plan = self.plan
        request = plan.request
        body = whole_body(
            request.route, plan.answer_id, plan.created_s, request.model, plan.fingerprint, plan.choices, plan.usage()
        )
        if plan.fault is Fault.MALFORMED_CHUNK:
            return body[: len(body) // 2]
        if plan.fault is Fault.GIANT_EVENT:
            wanted = plan.options.event_bytes
            return body[:-1] + b',"padding":"' + b"x" * (DEFAULT_GIANT_BYTES if wanted is None else wanted) + b'"}'
        return body

    def _spoil(self, body: bytes) -> bool:
        """Send half an answer where the fault strikes in the middle; False if the answer goes out after all."""
        if self.plan.fault in (Fault.MALFORMED_CHUNK, Fault.GIANT_EVENT):
            return False
        if self.plan.fault is Fault.ERROR_EVENT:
            self.end(State.FAILED)
            self.connection.respond(500, orjson.dumps(error_object(500, ENGINE_FAILED)))
            return True
        self.connection.write(self.connection.head(200, _JSON, len(body)) + body[: len(body) // 2])
        return self.strike()
