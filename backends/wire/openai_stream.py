"""Turn an engine's SSE stream into the public one, without a JSON parse per chunk.

Floor: wire (pure). Feed de-chunked body bytes, get whole public events.

The public stream has one form whatever the engine sends: a role chunk first, one choice per chunk, the last chunk
of a choice with an empty delta, our ``id``, ``created`` and ``model``, only known fields, ASCII only. Almost every
chunk of a stream differs from its predecessor only in the text of one string and in usage counts. So the first plain
chunk is parsed and taken apart into *lead*, text and *trail*; the following ones only have to start with the
same lead and match the trail's pattern, and their text is put into our own envelope. What fits no pattern is parsed
and rebuilt from known fields, so nothing unknown can slip through either way.

Sources: WHATWG HTML 9.2 (event streams); OpenAI API reference, chat streaming.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import orjson

from backends.wire.allowance import Allowance, no_bound
from backends.wire.answer.chunks import Envelope, encode_event
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.finish_reason import finish_reason
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, TokenUsage, read_usage

__all__ = ["DELTA_FIELDS", "StreamRewriter", "clean_logprobs", "clean_tool_calls", "encode_event"]

_TEXT = rb'((?:[^"\\\x00-\x1f]++|\\["\\/bfnrtu])*+)"'
_TEXT_PATTERN = re.compile(_TEXT)
_NON_ASCII = re.compile(r"[^\x00-\x7f]+")

DELTA_FIELDS = ("content", "reasoning_content", "refusal", "tool_calls", "function_call")
"""What a delta may carry to the client, besides the role, which we write ourselves."""


class StreamRewriter:
    """The state of one answer's translation.

    Args:
        request: what was asked; gives the public envelope.
        limit_bytes: cap of one event; a longer one is a protocol failure.
        allow: says how many deltas may be handed out; asked seldom, see `backends.wire.allowance`.
    """

    __slots__ = (
        "_allow", "_begun", "_content_key", "_deltas", "_envelope", "_is_total", "_last_usage_event", "_lead",
        "_limit_bytes", "_mark", "_no_usage", "_open_text", "_request", "_tail", "_text_key", "_trail", "_usage",
        "done", "finish_reasons", "is_waiting",
    )  # fmt: skip

    def __init__(self, request: InferenceRequest, *, limit_bytes: int, allow: Allowance = no_bound) -> None:
        self._request = request
        self._allow = allow
        self._limit_bytes = limit_bytes
        self._tail = b""
        self._lead = b""
        self._trail: re.Pattern[bytes] | None = None
        self._usage: TokenUsage | None = None
        self._last_usage_event: bytes | None = None
        self._is_total = False
        self._deltas = 0
        self._begun: set[int] = set()
        self.done = False
        self.is_waiting = False
        self.finish_reasons: dict[int, str] = {}
        self._text_key = "content" if request.kind is Kind.CHAT else "text"
        self._content_key = f'"{self._text_key}":'.encode()
        # The envelope up to the text of a plain chunk of choice 0, and what follows the text.
        self._envelope = Envelope(request)
        self._open_text, self._no_usage = self._envelope.plain(0)
        self._mark = allow(Observed(None, 0))

    def feed(self, data: bytes) -> bytes:
        """Take body bytes cut anywhere; return the whole public events that they complete (maybe none).

        From the delta on that is not allowed yet everything is kept back, and ``is_waiting`` says so. Whoever clears it
        and feeds again, be it nothing, lets the delta be asked for again.

        Raises:
            BackendFailure: the stream is malformed, too large, or carries the engine's own error.
        """
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
        lead, trail = self._lead, self._trail
        skip = len(lead)
        at_once = self._request.completions  # an event may say something of every choice
        events = iter(data[:end].split(b"\n\n"))
        for event in events:
            if trail is not None and event.startswith(lead):
                match = trail.fullmatch(event, skip)
                if match is not None:
                    text = match[1]
                    if text:
                        if self._deltas >= self._mark and not self._is_allowed(event):
                            self._keep_back(event, events)
                            break
                        if not text.isascii():
                            text = _escape_non_ascii(text)
                        self._deltas += 1
                        self._last_usage_event = event
                        out.append(self._open_text + text + self._no_usage)
                    continue
            self._check_size(len(event))
            if self._deltas + at_once > self._mark and not self._is_allowed(event):
                self._keep_back(event, events)
                break
            out.append(self._rebuild(event))
            lead, trail = self._lead, self._trail
            skip = len(lead)
        if self._tail and not self.is_waiting:
            self._check_size(len(self._tail))
        return b"".join(out)

    def cut(self, usage: TokenUsage | None) -> bytes:
        """End the answer here as an engine ends one at its bound: ``length`` for every choice that goes on.

        Args:
            usage: what the usage chunk says, if one was asked for.
        """
        self.done = True
        self._tail = b""
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
                self._usage = read_usage(parsed.get("usage")) or self._usage
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
        usage = read_usage(chunk.get("usage")) or self.observed().usage
        more = self._allow(Observed(_at_least(usage, deltas) if usage is not None else None, deltas))
        self._mark = deltas + more
        return more >= 0

    def _says_something(self, choice: object) -> bool:
        if not isinstance(choice, dict) or choice.get("index", 0) in self.finish_reasons:
            return False
        return bool(self._content(choice))

    def _keep_back(self, event: bytes, rest: Iterator[bytes]) -> None:
        self._tail = b"\n\n".join([event, *rest, self._tail])
        self.is_waiting = True

    # -- the slow road: parse, keep what is known, write anew ----------------------------------------------------------

    def _rebuild(self, event: bytes) -> bytes:
        payload = _data_of(event)
        if not payload or self.done:
            return b""
        if payload == b"[DONE]":
            self.done = True
            self._trail = None  # nothing takes the short road any more
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
        usage = read_usage(chunk.get("usage"))
        if usage is not None:
            self._usage = usage
            self._last_usage_event = None
            self._is_total = not choices
        out = b"".join([self._choice(choice) for choice in choices])
        self._learn(event, choices)
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
            self._begun.add(index)
            out.append(self._envelope.role(index))
        if content:
            self._deltas += 1
            if choice.get("logprobs"):
                content["logprobs"] = clean_logprobs(choice["logprobs"])
            out.append(self._envelope.chunk(index, content))
        said = choice.get("finish_reason")
        if said is not None:
            reason = self.finish_reasons[index] = finish_reason(said)
            self._trail = None
            out.append(self._envelope.end(index, reason))
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

    def _learn(self, event: bytes, choices: list[Any]) -> None:
        """Remember the shape of a plain chunk: one unfinished choice 0 that holds one text and nothing else."""
        if self._request.completions != 1 or len(choices) != 1 or self.finish_reasons:
            return
        choice = choices[0]
        if choice.get("index", 0) != 0 or choice.get("finish_reason") is not None or choice.get("logprobs"):
            return
        holder = choice.get("delta") if self._request.kind is Kind.CHAT else choice
        text = holder.get(self._text_key) if isinstance(holder, dict) else None
        if not isinstance(text, str) or not text or event.count(self._content_key) != 1 or b"\n" in event:
            return
        if self._request.kind is Kind.CHAT and any(v for k, v in holder.items() if k != self._text_key):
            return  # a role, a tool call or reasoning rides along: not plain
        start = event.index(self._content_key) + len(self._content_key)
        start += event[start : start + 1] == b" "
        match = _TEXT_PATTERN.match(event, start + 1)
        if match is None or event[start : start + 1] != b'"':
            return
        self._lead = event[: start + 1]
        self._trail = _trail_pattern(event[match.end() :])

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


@lru_cache(maxsize=256)
def _trail_pattern(trail: bytes) -> re.Pattern[bytes]:
    """A text, then exactly this trail, in which only numbers behind ``"usage"`` may differ."""
    fixed, marker, usage = trail.partition(b'"usage"')
    counts = re.sub(rb"\d+", rb"\\d+", re.escape(marker + usage))
    return re.compile(_TEXT + re.escape(fixed) + counts)


def _escape_non_ascii(text: bytes) -> bytes:
    """Escape what is not ASCII inside the raw text of a JSON string."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY) from None
    return _NON_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], decoded).encode("ascii")


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
