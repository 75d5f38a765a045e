"""Write the public answer from what an engine generates, streamed or whole.

Floor: wire (pure). Knows pieces of text, never how they came here.

The public stream has the form that `backends.wire.openai_stream` gives the streams of other engines: a role chunk
first, one choice for each chunk, an empty delta at the end of a choice, only ASCII. A choice begins with its first
visible delta, so that a request that has said nothing yet can still be asked elsewhere.

A *delta*, for the allowance and for whoever counts, is a piece with text: it costs a token at least, whether it becomes
visible at once, together with a later one, or as two chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from backends.wire.allowance import UNBOUNDED, Allowance, no_bound
from backends.wire.answer.choice import Choice
from backends.wire.answer.chunks import Envelope, escape_text
from backends.wire.answer.deltas import Content, Delta, Reasoning, ToolCall, call_id
from backends.wire.answer.logprobs import Scored, chat_logprobs, text_logprobs
from backends.wire.answer.meter import Tally
from backends.wire.answer.styles import ReasoningMarks, ToolStyle
from backends.wire.answer.tool_calls import tool_call_parser
from backends.wire.answer.tool_rules import tool_rules
from backends.wire.answer.transcript import Transcript
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.finish_reason import finish_reason
from backends.wire.request import InferenceRequest, Kind
from backends.wire.sampling import Piece
from backends.wire.usage import Observed, TokenUsage


class AnswerWriter:
    """The state of one answer.

    Args:
        request: what was asked; gives the public envelope, and says which tools may be called.
        prompt_tokens: tokens of the prompt; what the engine says instead counts. ``None`` if nobody knows before it
            does: until then usage is unknown.
        stop: texts that end a choice and are not part of it: the caller's and those of the model's end tokens.
        tools: how the model writes tool calls, if it can.
        reasoning: how it marks reasoning, if it does.
        count: tokens of a text, for engines that report none.
        allow: says how many deltas of a stream may be handed out, see `backends.wire.allowance`.
    """

    __slots__ = (
        "_allow", "_choices", "_deltas", "_envelope", "_going", "_has_finished", "_is_chat", "_is_cut", "_kept",
        "_mark", "_plain", "_prompt_tokens", "_request", "_stopped_early", "_transcripts", "is_waiting",
    )  # fmt: skip

    def __init__(
        self,
        request: InferenceRequest,
        *,
        prompt_tokens: int | None,
        stop: tuple[str, ...],
        tools: ToolStyle | None,
        reasoning: ReasoningMarks | None,
        count: Callable[[str], int] | None,
        allow: Allowance = no_bound,
    ) -> None:
        self._request = request
        self._envelope = Envelope(request)
        self._prompt_tokens = prompt_tokens
        self._is_chat = request.kind is Kind.CHAT
        rules = tool_rules(request.body) if self._is_chat and tools else None
        new_parser = partial(tool_call_parser, tools, rules) if tools and rules else None
        marks = reasoning if self._is_chat else None
        self._choices = [
            Choice(index, stop=stop, reasoning=marks, tools=new_parser, count=count)
            for index in range(request.completions)
        ]
        self._transcripts = [] if request.stream else [Transcript() for _ in self._choices]
        self._plain = [self._envelope.plain(index) for index in range(request.completions)]
        self._kept: deque[Piece] = deque()
        self._deltas = 0
        self._going = len(self._choices)  # have not ended yet
        self._is_cut = False
        self._stopped_early = False
        self._has_finished = False
        self._allow = allow
        self._mark = allow(Observed(None, 0)) if request.stream else UNBOUNDED
        self.is_waiting = False

    @property
    def is_done(self) -> bool:
        """Every choice has ended; what the engine still says does not count."""
        return self._is_cut or self._going == 0

    @property
    def engine_goes_on(self) -> bool:
        """A choice was ended by a stop text here, so its engine may not know that it has."""
        return self._is_cut or self._stopped_early

    def feed(self, piece: Piece) -> bytes:
        """Take the next piece; return the public events that it completes, none for a whole answer.

        From the first piece on that is not allowed yet everything is kept back, and ``is_waiting`` says so.

        Raises:
            BackendFailure: the engine gave up, or speaks of a choice that nobody asked for.
        """
        if self._is_cut:
            return b""
        if self.is_waiting:
            self._kept.append(piece)
            return b""
        return self._take(piece)

    def go_on(self) -> bytes:
        """Ask for an allowance again; return what may be handed out of what was kept back."""
        self.is_waiting = False
        out: list[bytes] = []
        while self._kept and not self.is_waiting:
            out.append(self._take(self._kept.popleft()))
        return b"".join(out)

    def cut(self, usage: TokenUsage | None) -> bytes:
        """End the answer here as an engine ends one at its bound: ``length`` for every choice that goes on.

        What was kept back is neither handed out nor counted.

        Args:
            usage: what the usage chunk says, if one was asked for.
        """
        self._is_cut = True
        self.is_waiting = False
        self._kept.clear()
        out: list[bytes] = []
        for choice in self._choices:
            if choice.reason is None:
                choice.reason = "length"
                out += [self._opening(choice), self._envelope.end(choice.index, "length")]
        return b"".join(out) + self._envelope.usage(usage)

    def finish(self) -> bytes:
        """The engine said all: return the usage chunk if it was asked for. Not while the answer waits.

        Raises:
            BackendFailure: a choice never ended.
        """
        assert not self.is_waiting, "what is kept back belongs to the answer"
        if self._is_cut or self._has_finished:
            return b""
        if not self.is_done:
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        self._has_finished = True
        return self._envelope.usage(self.observed().usage) if self._request.stream else b""

    def whole(self) -> bytes:
        """The JSON of an answer that is not streamed.

        Raises:
            BackendFailure: a choice never ended.
        """
        self.finish()
        choices = [
            transcript.as_openai(choice, self._request)
            for choice, transcript in zip(self._choices, self._transcripts, strict=True)
        ]
        return orjson.dumps(self._envelope.whole(choices, self.observed().usage))

    def observed(self) -> Observed:
        """What was handed out so far; of a whole answer, what came."""
        return self._observed([choice.meter.tally() for choice in self._choices])

    # -- what may be handed out ----------------------------------------------------------------------------------------

    def _is_allowed(self, piece: Piece) -> bool:
        """Whether the piece may be handed out; asks."""
        deltas = self._deltas + 1
        nothing = Piece(tokens=0)
        tallies = [
            choice.meter.with_next(piece if choice.index == piece.choice else nothing) for choice in self._choices
        ]
        usage = self._observed(tallies).usage
        more = self._allow(Observed(usage, deltas))
        self._mark = deltas + more
        return more >= 0

    def _observed(self, tallies: list[Tally]) -> Observed:
        deltas = sum(tally.deltas for tally in tallies)
        if self._prompt_tokens is None:
            return Observed(None, deltas)
        usage = TokenUsage(
            prompt=self._prompt_tokens,
            completion=sum(tally.completion for tally in tallies),
            reasoning=sum(tally.reasoning for tally in tallies),
            reported=all(tally.reported for tally in tallies),
        )
        return Observed(usage, deltas)

    # -- a piece -------------------------------------------------------------------------------------------------------

    def _take(self, piece: Piece) -> bytes:
        if not 0 <= piece.choice < len(self._choices):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        choice = self._choices[piece.choice]
        if choice.reason is not None:
            return b""  # a choice that has ended says nothing more, and costs nothing more
        if piece.text:
            if self._deltas >= self._mark and not self._is_allowed(piece):
                self._kept.appendleft(piece)
                self.is_waiting = True
                return b""
            self._deltas += 1
        if piece.prompt_tokens is not None:
            self._prompt_tokens = piece.prompt_tokens
        if choice.is_plain and piece.text and piece.logprobs is None and self._request.stream:
            out = self._write_plain(choice, choice.feed_plain(piece))
        else:
            out = self._write(choice, choice.feed(piece))
        if choice.was_stopped:
            self._stopped_early |= piece.finish is None
            out += self._end(choice, "stop")
        elif piece.finish is not None:
            out += self._end(choice, finish_reason(piece.finish))
        return out

    def _end(self, choice: Choice, reason: str) -> bytes:
        out = self._write(choice, choice.finish())
        if reason in ("stop", "tool_calls"):
            reason = "tool_calls" if choice.has_called else "stop"
        choice.reason = reason
        self._going -= 1
        choice.meter.end()
        left = choice.logprobs.take(choice.cut_at)  # of tokens without text
        if not self._request.stream:
            self._transcripts[choice.index].add([], left)
            return b""
        return out + self._opening(choice) + self._envelope.end(choice.index, reason, self._scores(left))

    def _write_plain(self, choice: Choice, text: str) -> bytes:
        """The same as `_write` of one content, without log probabilities."""
        if not text:
            return b""
        choice.meter.shown()
        before, after = self._plain[choice.index]
        event = before + escape_text(text) + after
        return event if choice.has_begun else self._opening(choice) + event

    def _write(self, choice: Choice, deltas: list[Delta]) -> bytes:
        if not deltas:
            return b""
        choice.meter.shown()
        scored = choice.logprobs.take(choice.cut_at)
        if not self._request.stream:
            self._transcripts[choice.index].add(deltas, scored)
            return b""
        out = [self._opening(choice)]
        for delta in deltas:
            if isinstance(delta, Content) and not scored:
                before, after = self._plain[choice.index]
                out.append(before + escape_text(delta.text) + after)
            else:
                content = self._content(choice, delta)
                if scored:
                    content["logprobs"] = self._scores(scored)
                    scored = []
                out.append(self._envelope.chunk(choice.index, content))
        return b"".join(out)

    def _opening(self, choice: Choice) -> bytes:
        if choice.has_begun:
            return b""
        choice.has_begun = True
        return self._envelope.role(choice.index)

    def _content(self, choice: Choice, delta: Delta) -> dict[str, Any]:
        match delta:
            case Content(text):
                return {"delta": {"content": text}} if self._is_chat else {"text": text}
            case Reasoning(text):
                return {"delta": {"reasoning_content": text}}
            case ToolCall(index, name, arguments):
                call: dict[str, Any] = {"index": index}
                function = {"arguments": arguments}
                if name is not None:
                    call |= {"id": call_id(self._request.answer_id, choice.index, index), "type": "function"}
                    function = {"name": name, "arguments": arguments}
                return {"delta": {"tool_calls": [{**call, "function": function}]}}

    def _scores(self, scored: list[Scored]) -> dict[str, Any] | None:
        return chat_logprobs(scored) if self._is_chat else text_logprobs(scored)
