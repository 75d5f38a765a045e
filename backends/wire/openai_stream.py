"""Turn an engine's SSE stream into the public one, without a JSON parse per chunk.

Floor: wire (pure). Feed de-chunked body bytes, get whole public events.

The public stream has one form whatever the engine sends: a role chunk first, one choice per chunk, the last chunk
of a choice with an empty delta, our ``id``, ``created`` and ``model``, only known fields, ASCII only. Almost every
chunk of a stream differs from its predecessor only in the text of one string and in usage counts. So a chunk that was
parsed once is known from then on by its bytes (`backends.wire.chunk_shape`): the following ones only have to be the
same but for their text, and the text is put into our own envelope; many of them that came in one read all at once. What
is not known is parsed and rebuilt from known fields, so nothing unknown can slip through either way.

Sources: WHATWG HTML 9.2 (event streams); OpenAI API reference, chat streaming.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson

from backends.wire.allowance import Allowance, no_bound
from backends.wire.answer.chunks import Envelope, encode_event
from backends.wire.chunk_shape import NOT_PLAIN, Habits, Shape, public_text, public_texts, shape_of
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.finish_reason import finish_reason
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, TokenUsage, read_usage

__all__ = ["DELTA_FIELDS", "StreamRewriter", "clean_logprobs", "clean_tool_calls", "encode_event"]

NOTHING = Observed(None, 0)
MAX_ATTEMPTS = 2
"""How often in one read it is tried to take many chunks at once, when that fails."""
MAX_ENDING = 4
"""Chunks of other shapes that are expected behind the last plain one."""
MAX_LESSONS = 16
"""Shapes that are learned from one stream: an engine that has more of them is parsed."""

DELTA_FIELDS = ("content", "reasoning_content", "refusal", "tool_calls", "function_call")
"""What a delta may carry to the client, besides the role, which we write ourselves."""


class StreamRewriter:
    """The state of one answer's translation.

    Args:
        request: what was asked; gives the public envelope.
        limit_bytes: cap of one event; a longer one is a protocol failure.
        allow: says how many deltas may be handed out; asked seldom, see `backends.wire.allowance`.
        habits: what earlier streams of the same engine and kind have shown; this one adds to it.
    """

    __slots__ = (
        "_allow", "_begun", "_between", "_content_key", "_counted", "_deltas", "_end", "_envelope", "_habits",
        "_is_total", "_last_usage_event", "_lead", "_lessons", "_limit_bytes", "_mark", "_no_usage", "_open_text",
        "_preamble", "_request", "_skip", "_stop", "_tail", "_text_key", "_usage",
        "done", "finish_reasons", "is_waiting",
    )  # fmt: skip

    def __init__(
        self,
        request: InferenceRequest,
        *,
        limit_bytes: int,
        allow: Allowance = no_bound,
        habits: Habits | None = None,
    ) -> None:
        self._request = request
        self._allow = allow
        self._limit_bytes = limit_bytes
        self._habits = Habits() if habits is None else habits
        self._tail = b""
        # The shape of a plain chunk; without a lead there is none.
        self._preamble = self._lead = self._end = self._between = b""
        self._skip = self._stop = self._lessons = 0
        self._counted: re.Pattern[bytes] | None = None
        self._usage: TokenUsage | None = None
        self._last_usage_event: bytes | None = None
        self._is_total = False
        self._deltas = 0
        self._begun: set[int] = set()
        self.done = False
        self.is_waiting = False
        self.finish_reasons: dict[int, str] = {}
        is_chat = request.kind is Kind.CHAT
        self._text_key = "content" if is_chat else "text"
        self._content_key = b'"content":' if is_chat else b'"text":'
        # The envelope up to the text of a plain chunk of choice 0, and what follows the text.
        self._envelope = Envelope(request)
        self._open_text, self._no_usage = self._envelope.plain(0)
        self._mark = allow(NOTHING)

    def feed(self, data: bytes) -> bytes:
        """Take body bytes cut anywhere; return the whole public events that they complete (maybe none).

        From the delta on that is not allowed yet everything is kept back, and ``is_waiting`` says so. Whoever clears it
        and feeds again, be it nothing, lets the delta be asked for again.

        Raises:
            BackendFailure: the stream is malformed, too large, or carries the engine's own error.
        """
        # Paced engines send one plain chunk at a time: this is the hottest code of a stream.
        if self._lead and not self._tail and self._deltas < self._mark and data.startswith(self._lead):
            counted = self._counted
            if counted is None:
                text = data[self._skip : self._stop] if data.endswith(self._end) else b""
            else:
                match = counted.fullmatch(data, self._skip)
                text = match[1] if match is not None else b""
            public = text if NOT_PLAIN.search(text) is None else public_text(text)
            if public:
                self._deltas += 1
                if counted is not None:
                    self._last_usage_event = data
                return self._open_text + public + self._no_usage
        return self._feed_any(data)

    def _feed_any(self, data: bytes) -> bytes:
        if self.is_waiting:
            self._tail += data
            return b""
        if self._tail:
            data = self._tail + data
        if b"\r" in data:
            data = _unify_line_ends(data)
        end = data.rfind(b"\n\n")
        if end < 0:
            self._tail = data
            self._check_size(len(data))
            return b""
        self._tail = data[end + 2 :]
        out: list[bytes] = []
        self._translate(data[:end], out)
        if self._tail and not self.is_waiting:
            self._check_size(len(self._tail))
        return b"".join(out)

    def _translate(self, body: bytes, out: list[bytes]) -> None:
        """Append what whole events become, the blank line behind the last one missing."""
        lines = body.split(b"\n")  # one byte is found much faster than two
        events = body.split(b"\n\n") if any(lines[1::2]) else lines[::2]
        at_once = self._request.completions  # an event may say something of every choice
        position, attempts = 0, MAX_ATTEMPTS
        while position < len(events):
            event = events[position]
            if self._lead and event.startswith(self._lead):
                if attempts and self._deltas < self._mark:
                    taken = self._take_run(body, events, position, out)
                    position += taken
                    if taken:
                        continue
                    attempts -= 1
                text = self._text_in(event)
                if text is not None:
                    if text:
                        # What a plain chunk says is known; only one that counts may bring a new usage.
                        if self._deltas >= self._mark and not (
                            self._may_reach(self._deltas + 1, self.observed().usage)
                            if self._counted is None
                            else self._is_allowed(event)
                        ):
                            self._keep_back(events, position)
                            return
                        self._deltas += 1
                        out.append(self._open_text + text + self._no_usage)
                    if self._counted is not None:
                        self._last_usage_event = event
                    position += 1
                    continue
            known = self._known(event)
            if known is None:
                self._check_size(len(event))
                if self._deltas + at_once > self._mark and not self._is_allowed(event):
                    self._keep_back(events, position)
                    return
                known = self._rebuild(event)
            out.append(known)
            position += 1

    def _take_run(self, body: bytes, events: list[bytes], start: int, out: list[bytes]) -> int:
        """Translate as many plain chunks as follow each other, all at once. Returns how many; 0 if it can't be told."""
        before = sum(map(len, islice(events, start))) + 2 * start
        stop = min(len(events), start + self._mark - self._deltas)
        raw = (
            self._cut(body, events, start, stop, before)
            if self._counted is None
            else self._read(body, stop - start, before)
        )
        texts = public_texts(raw)
        if texts is None or not raw:
            return 0
        if not all(texts):
            texts = [text for text in texts if text]
        if texts:
            self._deltas += len(texts)
            out.append(self._open_text + (self._no_usage + self._open_text).join(texts) + self._no_usage)
        if self._counted is not None:
            self._last_usage_event = events[start + len(raw) - 1]
        return len(raw)

    def _cut(self, body: bytes, events: list[bytes], start: int, stop: int, before: int) -> list[bytes]:
        """The texts of plain chunks without counts, cut out by position.

        That this was right is shown by putting them together again.
        """
        lead, trail = self._lead, self._end[:-2]
        least = max(start, len(events) - MAX_ENDING)
        while stop > least and not events[stop - 1].endswith(trail):
            stop -= 1  # the end, the usage, [DONE]
        skip, last = self._skip, -len(trail)
        raw = [event[skip:last] for event in islice(events, start, stop)]
        return raw if body.startswith(b"".join((lead, self._between.join(raw), trail)), before) else []

    def _read(self, body: bytes, most: int, before: int) -> list[bytes]:
        """The texts of up to so many plain chunks with counts."""
        assert self._counted is not None
        lead, skip, match, raw = self._lead, self._skip, self._counted.match, list[bytes]()
        whole = body + b"\n\n"
        while len(raw) < most and whole.startswith(lead, before):
            found = match(whole, before + skip)
            if found is None:
                break
            raw.append(found[1])
            before = found.end()
        return raw

    def _text_in(self, event: bytes) -> bytes | None:
        """The public text of a plain chunk that starts with the lead; ``None`` if it is none."""
        if self._counted is None:
            if len(event) + 2 < self._skip - self._stop or not event.endswith(self._end[:-2]):
                return None
            return public_text(event[self._skip : self._stop + 2])
        match = self._counted.fullmatch(event + b"\n\n", self._skip)
        return public_text(match[1]) if match is not None else None

    def cut(self, usage: TokenUsage | None) -> bytes:
        """End the answer here as an engine ends one at its bound: ``length`` for every choice that goes on.

        Args:
            usage: what the usage chunk says, if one was asked for.
        """
        self.done = True
        self._tail = self._lead = b""
        count = max(self._request.completions, 1 + max(self._begun, default=0))
        ends = [self._choice({"index": index, "finish_reason": "length"}) for index in range(count)]
        return b"".join(ends) + self._envelope.usage(usage)

    def finish(self) -> bytes:
        """The body ended cleanly: check that the answer did, and return the usage chunk if it was asked for.

        Raises:
            BackendFailure: the stream stopped before every choice was finished.
        """
        leftover = self._tail.strip()
        if leftover:
            # Some engines close right behind the last line, without the blank one.
            self._tail = b""
            tail_out = self._rebuild(leftover)
        else:
            tail_out = b""
        if len(self.finish_reasons) < max(1, len(self._begun)):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        return tail_out + self._envelope.usage(self.observed().usage)

    def observed(self) -> Observed:
        """What was handed out so far; usage from the last event that carried it, else ``None``."""
        if self._last_usage_event is not None:
            event, self._last_usage_event = self._last_usage_event, None
            if b'"usage"' in event:
                parsed = orjson.loads(event[event.index(b"{") :])
                self._count(read_usage(parsed.get("usage")), is_total=False)
        if self._usage is not None and not self._is_total:
            return Observed(_at_least(self._usage, self._deltas), self._deltas)
        return Observed(self._usage, self._deltas)

    # -- what may be handed out ----------------------------------------------------------------------------------------

    def _is_allowed(self, event: bytes) -> bool:
        """Whether the deltas of an event may be handed out; asks if they pass the mark. Parses; called seldom."""
        try:
            chunk = orjson.loads(_data_of(event))
        except orjson.JSONDecodeError:
            return True  # no delta; whoever reads it next will say what it is
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        deltas = self._deltas + sum(map(self._says_something, choices if isinstance(choices, list) else []))
        if deltas == self._deltas or deltas <= self._mark:
            return True
        return self._may_reach(deltas, read_usage(chunk.get("usage")) or self.observed().usage)

    def _may_reach(self, deltas: int, usage: TokenUsage | None) -> bool:
        """Ask how many deltas may be handed out, and move the mark."""
        more = self._allow(Observed(_at_least(usage, deltas) if usage is not None else None, deltas))
        self._mark = deltas + more
        return more >= 0

    def _says_something(self, choice: object) -> bool:
        if not isinstance(choice, dict) or choice.get("index", 0) in self.finish_reasons:
            return False
        return bool(self._content(choice))

    def _keep_back(self, events: list[bytes], position: int) -> None:
        self._tail = b"\n\n".join([*events[position:], self._tail])
        self.is_waiting = True

    # -- chunks without a text that were met before --------------------------------------------------------------------

    def _known(self, event: bytes) -> bytes | None:
        """What a chunk becomes that opens or ends a choice or bears the usage; ``None`` if it has to be parsed."""
        preamble = self._preamble
        if not preamble:
            preamble = self._preamble = self._habits.preamble_of(event)
        if not preamble or self.done or not event.startswith(preamble):
            return None
        found = self._habits.meaning_of(event[len(preamble) :])
        if found is None:
            return None
        meaning, usage = found
        index = meaning.index
        if meaning.counts:
            self._count(read_usage(usage), is_total=index is None)
        if index is None or index in self.finish_reasons:
            return b""
        out = self._begin(index)
        return out if meaning.reason is None else out + self._end_choice(index, meaning.reason)

    def _count(self, usage: TokenUsage | None, *, is_total: bool) -> None:
        if usage is not None:
            self._usage = usage
            self._last_usage_event = None
            self._is_total = is_total

    def _begin(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        if index == 0 and self._preamble and self._habits.shape is not None and self._is_shaped():
            self._take_shape(self._habits.shape, self._preamble)
        return self._envelope.role(index)

    def _end_choice(self, index: int, reason: str) -> bytes:
        self.finish_reasons[index] = reason
        self._lead = b""  # nothing takes the short road any more
        return self._envelope.end(index, reason)

    # -- the slow road: parse, keep what is known, write anew ----------------------------------------------------------

    def _rebuild(self, event: bytes) -> bytes:
        payload = _data_of(event)
        if not payload or self.done:
            return b""
        if payload == b"[DONE]":
            self.done = True
            self._lead = b""
            return b""
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY) from None
        if not isinstance(chunk, dict):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        if chunk.get("error"):
            raise BackendFailure(FailureCode.BROKEN, Phase.BODY)
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        self._count(read_usage(chunk.get("usage")), is_total=not choices)
        ended, deltas = len(self.finish_reasons), self._deltas
        out = b"".join(map(self._choice, choices))
        if len(choices) < 2 and self._lessons < MAX_LESSONS:
            ends = len(self.finish_reasons) > ended
            if self._deltas == deltas:
                self._learn_meaning(event, chunk, ends=ends)
            elif not ends and self._is_shaped() and self._is_plain(choices[0]):
                self._learn_shape(event)
        return out

    def _choice(self, choice: object) -> bytes:
        if not isinstance(choice, dict):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        index = choice.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < 1024:
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        if index in self.finish_reasons:
            return b""  # a choice that has finished says nothing more, and costs nothing more
        out: list[bytes] = []
        content = self._content(choice)
        if index not in self._begun:
            out.append(self._begin(index))
        if content:
            self._deltas += 1
            if choice.get("logprobs"):
                content["logprobs"] = clean_logprobs(choice["logprobs"])
            out.append(self._envelope.chunk(index, content))
        said = choice.get("finish_reason")
        if said is not None:
            out.append(self._end_choice(index, finish_reason(said)))
        return b"".join(out)

    def _content(self, choice: dict[str, Any]) -> dict[str, Any]:
        """The part of a choice that says something, as it goes into the public chunk; empty if there is none."""
        if self._request.kind is not Kind.CHAT:
            text = choice.get("text")
            return {"text": text} if isinstance(text, str) and text else {}
        delta = choice.get("delta")
        if delta is None:
            return {}
        if not isinstance(delta, dict):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        kept = {name: delta[name] for name in DELTA_FIELDS if delta.get(name)}
        if delta.get("reasoning") and "reasoning_content" not in kept:
            kept["reasoning_content"] = delta["reasoning"]  # vLLM's name for the same thing
        if "tool_calls" in kept:
            kept["tool_calls"] = clean_tool_calls(kept["tool_calls"])
        return {"delta": kept} if kept else {}

    # -- learning ------------------------------------------------------------------------------------------------------

    def _learn_meaning(self, event: bytes, chunk: dict[str, Any], *, ends: bool) -> None:
        """Remember a chunk with at most one choice, of which nothing was handed on but its beginning or end."""
        size = self._preamble_size(event)
        choice = chunk["choices"][0] if chunk["choices"] else None
        if not size or (
            choice is not None and (self._content(choice) or (choice.get("finish_reason") is None) is ends)
        ):
            return  # it holds a text, or an end, that came after the end
        self._lessons += 1
        index = choice.get("index", 0) if choice is not None else None
        reason = self.finish_reasons[index] if ends and index is not None else None
        self._habits.learn(event[size:], index, reason, counts=chunk.get("usage") is not None)

    def _learn_shape(self, event: bytes) -> None:
        """Remember the shape of a plain chunk, unless it has it already."""
        if self._lead and event.startswith(self._lead) and self._text_in(event) is not None:
            return
        self._lessons += 1
        size = self._preamble_size(event)
        shape = shape_of(event, self._content_key, size)
        if shape is not None:
            self._take_shape(shape, event[:size])
            if size:
                self._habits.shape = shape

    def _preamble_size(self, event: bytes) -> int:
        if not self._preamble:
            self._preamble = self._habits.learn_preamble(event)
        return len(self._preamble) if event.startswith(self._preamble) else 0

    def _is_shaped(self) -> bool:
        """Whether plain chunks of this stream may be known by a shape: it has one choice, which goes on."""
        return self._request.completions == 1 and not self.finish_reasons

    def _is_plain(self, choice: dict[str, Any]) -> bool:
        """Whether choice 0 holds one text and nothing else."""
        if choice.get("index", 0) != 0 or choice.get("logprobs"):
            return False
        if self._request.kind is not Kind.CHAT:
            return True
        # A role, a tool call or reasoning that rides along is not plain.
        delta = choice["delta"]
        return isinstance(delta.get("content"), str) and not any(v for k, v in delta.items() if k != "content")

    def _take_shape(self, shape: Shape, preamble: bytes) -> None:
        lead = preamble + shape.opening
        self._lead, self._end, self._counted = lead, shape.end, shape.counted
        self._between = shape.end + lead
        self._skip, self._stop = len(lead), -len(shape.end)

    def _check_size(self, size: int) -> None:
        if size > self._limit_bytes:
            raise BackendFailure(FailureCode.TOO_LARGE, Phase.BODY)


def clean_tool_calls(calls: object) -> list[dict[str, Any]]:
    """Keep of each tool call what the OpenAI schema knows."""
    cleaned: list[dict[str, Any]] = []
    for call in calls if isinstance(calls, list) else []:
        if not isinstance(call, dict):
            continue
        kept = {name: call[name] for name in ("index", "id", "type") if call.get(name) is not None}
        function = call.get("function")
        if isinstance(function, dict):
            kept["function"] = {n: function[n] for n in ("name", "arguments") if function.get(n) is not None}
        cleaned.append(kept)
    return cleaned


_LOGPROB_FIELDS = ("token", "logprob", "bytes")
_LEGACY_LOGPROB_FIELDS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def clean_logprobs(raw: object) -> dict[str, Any] | None:
    """Keep of log probabilities what the OpenAI schemas know, of the chat's form or the older one."""
    if not isinstance(raw, dict):
        return None
    if "tokens" in raw:
        return {name: raw[name] for name in _LEGACY_LOGPROB_FIELDS if name in raw}
    return {
        kind: [_clean_token(token) for token in raw.get(kind) or []] for kind in ("content", "refusal") if kind in raw
    }


def _clean_token(token: object) -> dict[str, Any]:
    if not isinstance(token, dict):
        return {}
    cleaned = {name: token.get(name) for name in _LOGPROB_FIELDS}
    if isinstance(token.get("top_logprobs"), list):
        cleaned["top_logprobs"] = [
            {name: top.get(name) for name in _LOGPROB_FIELDS} for top in token["top_logprobs"] if isinstance(top, dict)
        ]
    return cleaned


def _at_least(usage: TokenUsage, deltas: int) -> TokenUsage:
    """A running count may lag, or be that of one choice among several; each delta is a token at least."""
    return usage if usage.completion >= deltas else replace(usage, completion=deltas, reported=False)


def _unify_line_ends(data: bytes) -> bytes:
    # A CR at the very end may be half of a CRLF: it waits for the next bytes. JSON itself never holds a raw CR.
    held = data.endswith(b"\r")
    body = data[:-1] if held else data
    body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return body + b"\r" if held else body


def _data_of(event: bytes) -> bytes:
    """The joined ``data`` lines of an event; comments and other fields are dropped."""
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if len(lines) != 1 else lines[0]
