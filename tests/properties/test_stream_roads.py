"""Both roads of a stream: what is known by its bytes becomes the very bytes that a parse would have made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.wire.allowance import WAIT, Allowance, no_bound
from backends.wire.chunk_shape import Habits
from backends.wire.failure import BackendFailure
from backends.wire.openai_stream import StreamRewriter
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed

HOSTILE = '"},"logprobs":null,"finish_reason":null}]}\n\ndata: {"id":"'
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [" the", "\n", '"', "\\", "\\u0041", "\u2028", "é", "字🙂", "\x7f", "\x7fé", "\x00", "/", "\r", "\t", HOSTILE]
    ),
)
RAW_TEXTS = st.sampled_from(
    [b"\\/", b"\\u0041", b"\\u00e9", b"\\ud83d", b"\\ud83d\\ude42", b"\\u12", b"\\x", b"\xff", b"\xed\xa0\x80", b"a\nb",
     b"a\\", b"\x01", b'a","tool_calls":[{"index":0,"id":"t"}],"x":"', b'"}}]}\n\ndata: ', b"\xc2\x85"]
)  # fmt: skip
COUNTS = st.one_of(st.none(), st.integers(0, 70), st.sampled_from(["many", -7, 1.5, 1 << 40]))


class ParsesAll(StreamRewriter):
    """A rewriter that learns nothing."""

    def _known(self, event: bytes) -> bytes | None:
        return None

    def _learn_meaning(self, event: bytes, chunk: dict[str, Any], *, ends: bool) -> None:
        pass

    def _learn_shape(self, event: bytes) -> None:
        pass


def encode(chunk: dict[str, Any], *, ensure_ascii: bool = False, spaces: bool = False) -> bytes:
    separators = None if spaces else (",", ":")
    return b"data: " + json.dumps(chunk, ensure_ascii=ensure_ascii, separators=separators).encode() + b"\n\n"


@st.composite
def engines(draw: st.DrawFn) -> list[dict[str, Any]]:
    """How an engine lays its chunks out; two of them, for one that changes its mind."""
    layouts = []
    for _ in range(2):
        fields = ["id", "object", "created", "model", "choices", "system_fingerprint", "usage"]
        layouts.append(
            {
                "order": fields if draw(st.integers(0, 4)) else draw(st.permutations(fields)),
                "spaces": draw(st.booleans()),
                "ascii": draw(st.booleans()),
                "usage": draw(st.booleans()),
                "reason_first": draw(st.booleans()),
            }
        )
    return layouts


@st.composite
def events(draw: st.DrawFn, layouts: list[dict[str, Any]], kind: Kind, name: str, created: int, number: int) -> bytes:
    layout = layouts[draw(st.sampled_from([0] * 12 + [1]))]
    what = draw(st.sampled_from(["text"] * 14 + ["raw", "raw", "run", "run", "role", "end", "usage", "odd", "odd"]))
    if what == "odd":
        return draw(
            st.sampled_from(
                [
                    b": ping\n\n",
                    b"\n\n",
                    b"\n",
                    b"data: [DONE]\n\n",
                    b'data: {"error":{"message":"no"}}\n\n',
                    b"event: x\ndata: {}\n\n",
                    b"data: {}\n\n",
                    b'data: {"choices":[]}\n\n',
                    b"data: nonsense\n\n",
                    b"x\n\n",
                ]
            )
        )
    text = draw(TEXTS) if what == "text" else ""
    delta: dict[str, Any] = {"content": text}
    if what == "text" and draw(st.integers(0, 15)) == 0:
        delta = draw(
            st.sampled_from(
                [{"reasoning": "hm"}, {"tool_calls": [{"index": 0, "id": "t"}]}, {}, {"role": "assistant", **delta}]
            )
        )
    if what == "role":
        delta = {"role": "assistant", "content": ""}
    if what == "raw":
        delta = {"content": "RAW"}
    said = draw(st.sampled_from(["stop", "length", "eos", "abort"])) if what == "end" else None
    index = draw(st.sampled_from([0] * 20 + [1]))
    choice: dict[str, Any] = {"index": index}
    content = {"delta": delta} if kind is Kind.CHAT else {"text": str(delta.get("content", ""))}
    rest = {"logprobs": None, "finish_reason": said}
    choice.update({**rest, **content} if layout["reason_first"] else {**content, **rest})
    values: dict[str, Any] = {
        "id": name,
        "object": "x",
        "created": created,
        "model": "secret",
        "choices": [] if what == "usage" else [choice] * draw(st.sampled_from([1] * 20 + [2])),
        "system_fingerprint": "secret",
    }
    if layout["usage"]:
        count = draw(COUNTS)
        details = draw(st.sampled_from([None, {"cached_tokens": 3}]))
        values["usage"] = (
            {"prompt_tokens": 9, "completion_tokens": count, "prompt_tokens_details": details}
            if count is not None
            else None
        )
    chunk = {field: values[field] for field in layout["order"] if field in values}
    encoded = encode(chunk, ensure_ascii=layout["ascii"], spaces=layout["spaces"])
    if what == "raw":
        encoded = encoded.replace(b"RAW", draw(RAW_TEXTS))
    return encoded * (number if what == "run" else 1)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Kind, list[list[bytes]]]:
    """A few streams of one engine, each as the reads that its bytes come in."""
    kind = draw(st.sampled_from([Kind.CHAT, Kind.CHAT, Kind.COMPLETION]))
    layouts = draw(engines())
    read: list[list[bytes]] = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(["chatcmpl-1", "chatcmpl-22", 'cmpl"3', "é"]))
        created = draw(st.sampled_from([1, 1_790_000_000, -1]))
        parts = draw(st.lists(events(layouts, kind, name, created, draw(st.integers(1, 9))), max_size=14))
        raw = b"".join(parts)
        if draw(st.integers(0, 9)) == 0:
            raw = raw.replace(b"\n", b"\r\n")
        cutting = draw(st.sampled_from(["events", "all", "anywhere"]))
        if cutting == "events":
            read.append(parts if b"\r" not in raw else [raw])
        elif cutting == "all":
            read.append([raw])
        else:
            cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=8)))
            read.append([raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)])
    return kind, read


def told(rewriter: StreamRewriter, reads: list[bytes]) -> list[object]:
    """Everything that whoever holds a rewriter can see of a stream."""
    seen: list[object] = []
    try:
        for read in reads:
            seen.append(rewriter.feed(read))
            seen.append(rewriter.observed())
            while rewriter.is_waiting:
                rewriter.is_waiting = False
                seen.append(rewriter.feed(b""))
                seen.append(rewriter.observed())
        seen.append(rewriter.finish())
    except BackendFailure as failure:
        seen.append((failure.code, failure.phase))
    return [*seen, rewriter.observed(), dict(rewriter.finish_reasons), rewriter.done]


def bounded(step: int) -> Allowance:
    """Says wait once, and then lets so many through."""
    asked: set[int] = set()

    def allow(seen: Observed) -> int:
        if seen.content_deltas in asked or seen.content_deltas == 0:
            return step
        asked.add(seen.content_deltas)
        return WAIT

    return allow


@settings(max_examples=80, deadline=None)
@given(streams(), st.sampled_from([1, 1, 1, 2]), st.booleans(), st.sampled_from([None, None, 0, 1, 5]))
def test_both_roads_give_the_same_bytes(
    drawn: tuple[Kind, list[list[bytes]]], completions: int, include_usage: bool, step: int | None
) -> None:
    """Whatever an engine sends, in whatever reads, on its first stream or a later one: same bytes and counts."""
    kind, reads = drawn
    habits = Habits()
    for number, stream in enumerate(reads):
        request = InferenceRequest(kind, {}, True, include_usage, f"chatcmpl-{number}", 7, "ep_x", completions)
        results = []
        for road in (ParsesAll, StreamRewriter):
            allow = no_bound if step is None else bounded(step)
            rewriter = road(request, limit_bytes=1 << 16, allow=allow, habits=habits)
            results.append(told(rewriter, stream))
        assert results[1] == results[0]


def chunk(text: str, name: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return encode({"id": name, "object": "x", "created": 5, "model": "secret", "choices": [choice], **more})


def test_a_second_stream_of_an_engine_is_not_parsed() -> None:
    """Role, texts, end and usage of an engine that was met before are known by their bytes."""
    habits, events = Habits(), []

    class Watched(StreamRewriter):
        def _rebuild(self, event: bytes) -> bytes:
            events.append(event)
            return super()._rebuild(event)

    for name, created, tokens in (("chatcmpl-a1", 1_790_000_000, 3), ("chatcmpl-b2c3", 1_790_000_007, 12)):
        events.clear()
        usage = {"prompt_tokens": 9, "completion_tokens": tokens}
        role = chunk("", name, usage=usage).replace(b'{"content"', b'{"role":"assistant","content"')
        end = chunk("", name, usage=usage).replace(b'"finish_reason":null', b'"finish_reason":"stop"')
        last = encode({"id": name, "object": "x", "created": 5, "model": "secret", "choices": [], "usage": usage})
        stream = role + chunk("a", name, usage=usage) + chunk("b", name, usage=usage) + end + last + b"data: [DONE]\n\n"
        stream = stream.replace(b'"created":5', b'"created":%d' % created)
        request = InferenceRequest(Kind.CHAT, {}, True, True, "chatcmpl-9", 7, "ep_x")
        rewriter = Watched(request, limit_bytes=1 << 16, habits=habits)
        out = rewriter.feed(stream) + rewriter.finish()
        assert out.count(b'"chatcmpl-9"') == 5
        assert rewriter.observed() == Observed(rewriter.observed().usage, 2)
        assert b"secret" not in out
    assert events == [b"data: [DONE]"]


def test_what_an_engine_hides_elsewhere_is_not_taken_for_its_text() -> None:
    """A ``content`` that is not the delta's is never handed on, however the chunk looks."""
    choice = b'{"index":0,"delta":{"content" :"a"},"x":{"content":"a"},"finish_reason":null}'
    first = b'data: {"id":"c","created":1,"choices":[' + choice + b"]}\n\n"
    second = first.replace(b'"x":{"content":"a"}', b'"x":{"content":"secret"}')
    request = InferenceRequest(Kind.CHAT, {}, True, False, "chatcmpl-9", 7, "ep_x")
    rewriter = StreamRewriter(request, limit_bytes=1 << 16)
    assert b"secret" not in rewriter.feed(first) + rewriter.feed(second)
    assert rewriter.observed().content_deltas == 2


def test_what_is_learned_is_bounded() -> None:
    """An engine whose every chunk looks different does not grow the memory of a worker."""
    habits = Habits()
    for number in range(12):
        request = InferenceRequest(Kind.CHAT, {}, True, False, "chatcmpl-9", 7, "ep_x")
        rewriter = StreamRewriter(request, limit_bytes=1 << 16, habits=habits)
        for odd in range(30):
            rewriter.feed(chunk("", f"chatcmpl-{number}", odd=f"{number}-{odd}"))
            rewriter.feed(chunk("a", f"chatcmpl-{number}", odd=f"{number}-{odd}"))
    assert len(habits._known) <= 64


@pytest.mark.parametrize("counts", [False, True], ids=["no-usage", "usage"])
@pytest.mark.parametrize("target", range(5), ids=["role", "first", "middle", "end", "usage"])
def test_one_changed_byte_is_seen(counts: bool, target: int) -> None:
    """Any byte of a chunk that an engine writes otherwise has the effect that it has on the parsing road."""
    usage = {"usage": {"prompt_tokens": 19, "completion_tokens": 21}} if counts else {}
    role = chunk("", "chatcmpl-7", **usage).replace(b'{"content"', b'{"role":"assistant","content"')
    end = chunk("", "chatcmpl-7", **usage).replace(b'"finish_reason":null', b'"finish_reason":"stop"')
    total = {"id": "chatcmpl-7", "object": "x", "created": 5, "model": "secret", "choices": [], **usage}
    texts = [chunk(text, "chatcmpl-7", **usage) for text in (" sea", "\n", " land", "")]
    usual = [role, texts[0], b"".join(texts), end, encode(total)]
    request = InferenceRequest(Kind.CHAT, {}, True, True, "chatcmpl-9", 7, "ep_x")
    event = usual[target]
    for position in range(len(event)):
        for changed in (event[position] ^ 1, event[position] ^ 2, 0x22):
            odd = event[:position] + bytes([changed]) + event[position + 1 :]
            stream = b"".join([*usual[:target], odd, *usual[target + 1 :]])
            habits = Habits()
            told(StreamRewriter(request, limit_bytes=1 << 16, habits=habits), [b"".join(usual)])
            expected = told(ParsesAll(request, limit_bytes=1 << 16), [stream, b""])
            assert told(StreamRewriter(request, limit_bytes=1 << 16, habits=habits), [stream, b""]) == expected, odd
            reads = [*usual[:target], odd, *usual[target + 1 :]]
            assert told(StreamRewriter(request, limit_bytes=1 << 16, habits=habits), reads) == told(
                ParsesAll(request, limit_bytes=1 << 16), reads
            )


RAW_BYTES = [b"\\u0041", b"\\/", b"\\ud83d", b"\\u12", b"\\x", b"\xff", b"\n", b"\x7f\xc3\xa9", b'\\"', b"a\\"]


@pytest.mark.parametrize("counts", [False, True], ids=["no-usage", "usage"])
def test_odd_endings_and_texts_have_the_effect_they_have_on_the_parsing_road(counts: bool) -> None:
    """A chunk broken off before its counts, one whose quotes are one, texts that we write otherwise."""
    usage = {"usage": {"prompt_tokens": 19, "completion_tokens": 21}} if counts else {}
    role = chunk("", "chatcmpl-7", **usage).replace(b'{"content"', b'{"role":"assistant","content"')
    plain = chunk("X", "chatcmpl-7", **usage)
    odd = [plain.replace(b"X", raw) for raw in RAW_BYTES]
    odd += [plain.replace(b'"X"', b'"'), role.partition(b'"usage":')[0] + b'"usage":\n\n']
    for event in odd:
        for reads in ([role, plain, event, plain], [role, plain, plain + event + plain]):
            habits, request = Habits(), InferenceRequest(Kind.CHAT, {}, True, False, "chatcmpl-9", 7, "ep_x")
            told(StreamRewriter(request, limit_bytes=1 << 16, habits=habits), [role, plain])
            expected = told(ParsesAll(request, limit_bytes=1 << 16), reads)
            assert told(StreamRewriter(request, limit_bytes=1 << 16, habits=habits), reads) == expected, event
