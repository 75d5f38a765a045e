"""The stream rewriter: whatever an engine sends, cut anywhere, the client gets the same clean stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.wire.allowance import WAIT
from backends.wire.failure import BackendFailure, FailureCode
from backends.wire.openai_answer import rebuild_answer
from backends.wire.openai_stream import StreamRewriter
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, TokenUsage

REAL_MODEL = "secret-labs/real-checkpoint-70b"


def request(*, include_usage: bool = False, kind: Kind = Kind.CHAT, completions: int = 1) -> InferenceRequest:
    return InferenceRequest(
        kind=kind,
        body={},
        stream=True,
        include_usage=include_usage,
        answer_id="chatcmpl-1",
        created_s=1_700_000_000,
        public_model="ep_x",
        completions=completions,
    )


def upstream(delta: dict[str, Any], *, finish: str | None = None, tokens: int | None = None, **extra: Any) -> bytes:
    chunk: dict[str, Any] = {
        "id": "chatcmpl-engine",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": REAL_MODEL,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "stop_reason": None}],
        **extra,
    }
    if tokens is not None:
        chunk["usage"] = {"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens}
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usual(texts: list[str], *, final_usage: bool = True) -> bytes:
    events = [upstream({"role": "assistant", "content": ""}, tokens=0, prompt_token_ids=[1, 2])]
    events += [upstream({"content": text}, tokens=count) for count, text in enumerate(texts, 1)]
    events.append(upstream({}, finish="stop", tokens=len(texts), system_fingerprint=REAL_MODEL))
    if final_usage:
        usage = {"prompt_tokens": 9, "total_tokens": 9 + len(texts), "completion_tokens": len(texts)}
        events.append(b"data: " + json.dumps({"choices": [], "usage": usage, "model": REAL_MODEL}).encode() + b"\n\n")
    return b"".join(events) + b"data: [DONE]\n\n"


def run(raw: bytes, *, pieces: list[int] | None = None, **options: Any) -> tuple[bytes, StreamRewriter]:
    rewriter = StreamRewriter(request(**options), limit_bytes=1 << 20)
    out, start = b"", 0
    for cut in [*(pieces or []), len(raw)]:
        out += rewriter.feed(raw[start:cut])
        start = cut
    return out + rewriter.finish(), rewriter


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    assert stream.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in stream[:-2].split(b"\n\n")]


def text_of(stream: bytes) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks_of(stream) if chunk["choices"])


TEXTS = ["Hel", "lo", ' "quoted" \\ ', "line\nbreak", "é中\u2028\u2029\u0085🙂", "!", "  ", "}]}"]


def test_the_public_stream_has_its_fixed_form() -> None:
    """Role chunk, one choice each, an empty last delta; our id, time and model; no usage that nobody asked for."""
    out, _ = run(usual(TEXTS))
    chunks = chunks_of(out)
    assert chunks[0]["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        ("chatcmpl-1", 1_700_000_000, "ep_x", "chat.completion.chunk")
    }
    assert text_of(out) == "".join(TEXTS)


def test_real_names_and_engine_extras_never_pass() -> None:
    """Nothing of the engine's own fields is left, on the fast road or the slow one."""
    out, _ = run(usual(TEXTS), include_usage=True)
    for secret in (b"secret-labs", b"prompt_token_ids", b"stop_reason", b"system_fingerprint", b"chatcmpl-engine"):
        assert secret not in out


def test_a_stream_is_ascii() -> None:
    """httpx cuts lines at U+2028, U+2029 and U+0085, so none of them may stand raw in a line."""
    out, _ = run(usual(TEXTS))
    assert out.isascii()


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b" \n\n"])
def test_a_stream_may_be_cut_at_every_byte(include_usage: bool, line_end: bytes) -> None:
    """Wherever the network cuts, the same bytes come out."""
    raw = usual(["a", "é🙂", '"', "end"])
    raw = raw.replace(b"\n\n", b" \n\n") if line_end == b" \n\n" else raw.replace(b"\n", line_end)
    whole, _ = run(raw, include_usage=include_usage)
    for cut in range(1, len(raw)):
        assert run(raw, pieces=[cut], include_usage=include_usage)[0] == whole, f"cut at {cut}"
    assert run(raw, pieces=list(range(1, len(raw))), include_usage=include_usage)[0] == whole


def test_usage_comes_only_when_asked_for() -> None:
    """With include_usage every chunk bears ``usage: null`` and one last chunk without choices bears the numbers."""
    chunks = chunks_of(run(usual(TEXTS), include_usage=True)[0])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 9, "completion_tokens": len(TEXTS), "total_tokens": 9 + len(TEXTS)}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_an_aborted_stream_knows_what_was_delivered() -> None:
    """After each chunk the usage observed is that of the chunks handed out, so that a hang-up can be billed."""
    rewriter = StreamRewriter(request(), limit_bytes=1 << 20)
    rewriter.feed(upstream({"role": "assistant", "content": ""}, tokens=0))
    for count in range(1, 20):
        rewriter.feed(upstream({"content": f"w{count}"}, tokens=count))
        observed = rewriter.observed()
        assert observed.content_deltas == count
        assert observed.usage is not None
        assert (observed.usage.prompt, observed.usage.completion) == (9, count)


def test_without_usage_deltas_are_counted() -> None:
    """An engine that never reports leaves usage unknown and the count of deltas right."""
    raw = b"".join(upstream({"content": text}) for text in ("a", "b", "c")) + upstream({}, finish="length")
    _, rewriter = run(raw)
    assert rewriter.observed().usage is None
    assert rewriter.observed().content_deltas == 3
    assert rewriter.finish_reasons == {0: "length"}


def test_two_choices_become_chunks_of_one() -> None:
    """A chunk with two choices is split, and each choice begins with a role and ends with a reason."""
    both = {
        "choices": [
            {"index": 0, "delta": {"content": "a"}, "finish_reason": None},
            {"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"},
        ]
    }
    raw = b"data: " + json.dumps(both).encode() + b"\n\n" + upstream({}, finish="stop")
    chunks = chunks_of(run(raw, completions=2)[0])
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    for index in (0, 1):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert mine[-1] == {"index": index, "delta": {}, "finish_reason": "stop"}


def test_several_choices_are_counted_together_when_cut_short() -> None:
    """Engines report one choice's count at a time; a hang-up is billed for the deltas of all."""
    rewriter = StreamRewriter(request(completions=3), limit_bytes=1 << 20)
    for count in range(1, 5):
        for index in range(3):
            event = upstream({"content": "x"}, tokens=count).replace(b'"index":0', b'"index":%d' % index)
            rewriter.feed(event)
    usage = rewriter.observed().usage
    assert usage is not None
    assert (usage.prompt, usage.completion, usage.reported) == (9, 12, False)


def test_a_running_count_that_lags_is_not_believed() -> None:
    """An engine that reports usage in its first chunk only is billed for the deltas that followed."""
    rewriter = StreamRewriter(request(), limit_bytes=1 << 20)
    rewriter.feed(upstream({"content": "a"}, tokens=1))
    for _ in range(9):
        rewriter.feed(upstream({"content": "b"}))
    usage = rewriter.observed().usage
    assert usage is not None
    assert (usage.prompt, usage.completion, usage.reported) == (9, 10, False)


def test_logprobs_keep_the_schema() -> None:
    """Tokens and their alternatives pass; what an engine adds inside them does not."""
    top = {"token": "b", "logprob": -2.0, "bytes": [98], "rank": 2}
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [top], "token_id": 7}
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [token], "secret": 1}}]}
    raw = b"data: " + json.dumps(chunk).encode() + b"\n\n" + upstream({}, finish="stop")
    logprobs = chunks_of(run(raw)[0])[1]["choices"][0]["logprobs"]
    assert logprobs == {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
            }
        ]
    }


def test_tool_calls_pass_with_known_fields_only() -> None:
    """Tool call deltas arrive whole, without what an engine adds to them."""
    call = {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "x": 1,
        "function": {"name": "f", "arguments": "{}", "y": 2},
    }
    raw = upstream({"tool_calls": [call]}) + upstream({}, finish="tool_calls")
    chunks = chunks_of(run(raw)[0])
    assert chunks[1]["choices"][0]["delta"]["tool_calls"] == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]


def test_reasoning_has_one_name() -> None:
    """vLLM's ``reasoning`` reaches the client as ``reasoning_content``, like everybody else's."""
    raw = upstream({"reasoning": "hm"}) + upstream({"content": "x"}) + upstream({}, finish="stop")
    assert chunks_of(run(raw)[0])[1]["choices"][0]["delta"] == {"reasoning_content": "hm"}


def test_legacy_completions_have_their_own_form() -> None:
    """Text completions stream ``text`` under ``text_completion``, without a role chunk."""
    events = [
        {
            "choices": [{"index": 0, "text": text, "finish_reason": None}],
            "model": REAL_MODEL,
            "usage": {"prompt_tokens": n},
        }
        for n, text in enumerate(["a", "b", "c"])
    ]
    events.append({"choices": [{"index": 0, "text": "", "finish_reason": "length"}], "model": REAL_MODEL})
    raw = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    chunks = chunks_of(run(raw, kind=Kind.COMPLETION)[0])
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c", ""]
    assert chunks[0]["object"] == "text_completion"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"data: {not json}\n\n", FailureCode.PROTOCOL),
        (b'data: {"error": {"message": "CUDA out of memory"}}\n\n', FailureCode.BROKEN),
        (b'data: {"choices": "x"}\n\n', FailureCode.PROTOCOL),
        (b"data: [1]\n\n", FailureCode.PROTOCOL),
        (upstream({"content": "a"}), FailureCode.PROTOCOL),
        (upstream({"content": "a"}) + b"data: [DONE]\n\n", FailureCode.PROTOCOL),
        (b"data: " + b"x" * (1 << 20) + b"y", FailureCode.TOO_LARGE),
    ],
)
def test_a_broken_stream_is_a_failure_and_not_an_end(raw: bytes, code: FailureCode) -> None:
    """Malformed, cut short, too large or an engine's own error: never taken for a complete answer."""
    with pytest.raises(BackendFailure) as caught:
        run(raw)
    assert caught.value.code is code


def test_a_fast_chunk_that_hides_something_takes_the_slow_road() -> None:
    """Once a shape is learned, a chunk that differs in anything but text and counts is parsed again."""
    first = upstream({"content": "a"}, tokens=1)
    sly = first.replace(b'"content":"a"', b'"content":"b","tool_calls":[{"index":0,"id":"t"}]')
    raw = first + first + sly + upstream({}, finish="stop")
    chunks = chunks_of(run(raw)[0])
    assert chunks[3]["choices"][0]["delta"] == {"content": "b", "tool_calls": [{"index": 0, "id": "t"}]}


@pytest.mark.parametrize(
    ("said", "shown"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"), ("content_filter", "content_filter"),
     ("eos_token", "stop"), (7, "stop"), ({"type": "stop", "matched": "secret"}, "stop")],
)  # fmt: skip
def test_a_finish_reason_is_one_of_the_schema(said: object, shown: str) -> None:
    """An engine's own words for an end never leave, streamed or whole."""
    choice = {"index": 0, "delta": {"content": "x"}, "message": {"content": "x"}, "finish_reason": said}
    raw = json.dumps({"choices": [choice]}).encode()
    streamed = StreamRewriter(request(), limit_bytes=10_000).feed(b"data: " + raw + b"\n\n")
    assert json.loads(streamed.split(b"data: ")[-1])["choices"][0]["finish_reason"] == shown
    whole, _ = rebuild_answer(raw, request())
    assert json.loads(whole)["choices"][0]["finish_reason"] == shown


@pytest.mark.parametrize("said", ["abort", "error", "cancelled", {"type": "abort", "message": "secret"}])
def test_an_engine_that_gave_up_has_failed(said: object) -> None:
    """An answer that the engine itself broke off is no finished answer: it must not be charged as one."""
    choice = {"index": 0, "delta": {}, "message": {"content": "x"}, "finish_reason": said}
    raw = json.dumps({"choices": [choice]}).encode()
    with pytest.raises(BackendFailure):
        StreamRewriter(request(), limit_bytes=10_000).feed(b"data: " + raw + b"\n\n")
    with pytest.raises(BackendFailure):
        rebuild_answer(raw, request())


@pytest.mark.parametrize("end", [upstream({}, finish="stop"), b"data: [DONE]\n\n"], ids=["finish", "done"])
def test_nothing_follows_the_end(end: bytes) -> None:
    """What an engine sends behind the end of an answer is neither shown nor counted, on either road."""
    rewriter = StreamRewriter(request(), limit_bytes=10_000)
    rewriter.feed(upstream({"content": "a"}) + upstream({"content": "b"}) + end)
    assert rewriter.feed(upstream({"content": "c"}) + upstream({"content": "d"})) == b""
    assert rewriter.observed().content_deltas == 2


@pytest.mark.parametrize("crlf", [False, True])
@pytest.mark.parametrize("tokens", [True, False], ids=["usage", "no-usage"])
def test_an_allowance_of_any_size_changes_no_byte(crlf: bool, tokens: bool) -> None:
    """Asked every n deltas, told to wait each time, cut at any byte: the client gets the same stream, in order."""
    texts = ["Hello", " w\u00f6rld", "!", " More", " and", " more", "."]
    raw = usual(texts) if tokens else usual(texts).replace(b',"usage"', b',"other"')
    raw = raw.replace(b"\n\n", b"\r\n\r\n") if crlf else raw
    expected, _ = run(raw, include_usage=True)
    for size in (0, 1, 3):
        for cut in range(0, len(raw), 7):
            asked: list[int] = []

            def allow(seen: Observed, asked: list[int] = asked, size: int = size) -> int:
                if (asked and asked[-1] == seen.content_deltas) or seen.content_deltas == 0:
                    return size
                asked.append(seen.content_deltas)
                return WAIT

            rewriter = StreamRewriter(request(include_usage=True), limit_bytes=1 << 20, allow=allow)
            out = b""
            for piece in (raw[:cut], raw[cut:]):
                out += rewriter.feed(piece)
                handed_out = rewriter.observed().content_deltas
                while rewriter.is_waiting:
                    assert rewriter.feed(b"") == b""
                    assert asked[-1] == handed_out + 1
                    rewriter.is_waiting = False
                    out += rewriter.feed(b"")
                    handed_out = rewriter.observed().content_deltas
            assert out + rewriter.finish() == expected
            assert asked == list(range(size + 1, len(texts) + 1, size + 1))


def test_an_allowance_is_asked_with_the_usage_of_the_delta_that_waits() -> None:
    """What is not handed out yet is not observed; the one who allows it sees what it will have cost."""
    asked: list[Observed] = []

    def allow(seen: Observed) -> int:
        asked.append(seen)
        return WAIT if seen.content_deltas else 1

    raw = upstream({"content": "a"}, tokens=2) + upstream({"content": "b"}, tokens=5)
    rewriter = StreamRewriter(request(), limit_bytes=1 << 20, allow=allow)
    rewriter.feed(raw)
    assert rewriter.is_waiting
    assert asked[-1] == Observed(TokenUsage(9, 5), 2)
    assert rewriter.observed() == Observed(TokenUsage(9, 2), 1)


def test_an_end_is_not_asked_for() -> None:
    """A stream that stops where its allowance does is whole: finish, usage and [DONE] are no deltas."""
    asked: list[int] = []

    def allow(seen: Observed) -> int:
        asked.append(seen.content_deltas)
        return 3

    rewriter = StreamRewriter(request(include_usage=True), limit_bytes=1 << 20, allow=allow)
    out = rewriter.feed(usual(["a", "b", "c"])) + rewriter.finish()
    assert asked == [0]
    assert out == run(usual(["a", "b", "c"]), include_usage=True)[0]


def test_a_cut_ends_every_choice_once() -> None:
    """Of three choices one has finished, one has spoken and one has not: two get ``length``, one of them its role."""
    rewriter = StreamRewriter(request(completions=3, include_usage=True), limit_bytes=1 << 20)
    rewriter.feed(upstream({"content": "a"}, finish="stop"))
    rewriter.feed(upstream({"content": "b"}).replace(b'"index":0', b'"index":1'))
    out = rewriter.cut(TokenUsage(9, 2)) + rewriter.feed(upstream({"content": "late"}))
    chunks = [json.loads(event.removeprefix("data: ")) for event in out.decode().split("\n\n") if event]
    ends = [(c["index"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]]
    assert ends == [(1, "length"), (2, None), (2, "length")]
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert {(chunk["id"], chunk["model"], chunk["created"]) for chunk in chunks} == {
        ("chatcmpl-1", "ep_x", 1_700_000_000)
    }
