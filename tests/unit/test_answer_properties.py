"""However an engine cuts its text into pieces, and however the answer is asked for, it is the same answer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.wire.answer.styles import ReasoningMarks, ToolStyle
from backends.wire.answer.writer import AnswerWriter
from backends.wire.sampling import Piece
from backends.wire.usage import Observed
from tests.unit.answer_tools import Read, read_stream, read_whole, words, writer

FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]",
    "<th", "</to", "<|py", "[TOOL", "STOP", "ST", "OPEN", "<|eot|>", "<|", "{", "}", "[", "]", ",", ":", ";", '"', "\\",
    '{"name": "f", "arguments": {', '"parameters":', '"arguments":', '{"name":"g"', '"name"', '"f"', "f", "g",
    "null", '{"name":"f","arguments":{"a":"é🙂\\u00e9\\""}}',
    '{"name":"g","parameters":{"b":[1,{}]}}', 'f{"a":1}', "1.5e3", "-",
    " ", "\n", "\n\n", "\t", "é", "🙂", "中文", "word", "Hello world. ", "\u2028", "\x00", "\ufffd",
]  # fmt: skip
BROKEN = [b"\xff", b"\xc3", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\x80"]

texts = st.lists(
    st.sampled_from([fragment.encode() for fragment in FRAGMENTS]) | st.sampled_from(BROKEN) | st.binary(max_size=3),
    max_size=14,
).map(b"".join)
cuts = st.lists(st.integers(0, 200), max_size=12)
stops = st.sampled_from(
    [(), ("STOP",), ("STOP", "TO"), ("<|eot|>", "STOP"), ("OPEN", "PEN", "ST"), ("}",), ("🙂",), ("\n\n",)]
)
marks = st.sampled_from([None, ReasoningMarks(), ReasoningMarks(starts_open=True)])
styles = st.sampled_from([None, *ToolStyle])
bodies = st.sampled_from(
    [
        {},
        {"parallel_tool_calls": False},
        {"tool_choice": "none"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
    ]
)
options = st.fixed_dictionaries({"stop": stops, "reasoning": marks, "tools": styles, "body": bodies})
finishes = st.sampled_from(["stop", "length"])


def answer_of(answer: AnswerWriter, pieces: list[Piece], *, stream: bool) -> tuple[Read, Observed]:
    out = b"".join(map(answer.feed, pieces)) + answer.finish()
    return (read_stream(out) if stream else read_whole(answer.whole())), answer.observed()


def pieces_of(text: bytes, at: list[int], finish: str, *, joined: bool = False) -> list[Piece]:
    bounds = [0, *sorted({cut for cut in at if 0 < cut < len(text)}), len(text)]
    bits = [text[start:end] for start, end in pairwise(bounds)]
    if joined:
        return [Piece(text=bit) for bit in bits[:-1]] + [Piece(text=bits[-1], finish=finish)]
    return [Piece(text=bit) for bit in bits] + [Piece(finish=finish)]


@settings(max_examples=600, deadline=None)
@given(text=texts, at=cuts, how=options, finish=finishes, joined=st.booleans())
@example(
    text=b'<think>a</think> <tool_call>{"name":"f","arguments":{"a":1}}</tool_call>STOP',
    at=list(range(100)),
    how={"stop": ("STOP",), "reasoning": ReasoningMarks(), "tools": ToolStyle.HERMES, "body": {}},
    finish="length",
    joined=False,
)
def test_neither_cuts_nor_streaming_change_an_answer(
    text: bytes, at: list[int], how: dict[str, Any], finish: str, joined: bool
) -> None:
    """Same bytes, same content, reasoning, calls, reason and usage: in one piece, in many, byte by byte, whole."""
    expected, seen = answer_of(writer(stream=False, **how), pieces_of(text, [], finish), stream=False)
    for cut in (at, list(range(len(text)))):
        pieces = pieces_of(text, cut, finish, joined=joined)
        for stream in (True, False):
            got, observed = answer_of(writer(stream=stream, **how), pieces, stream=stream)
            assert got == expected
            assert observed.usage == seen.usage


@settings(max_examples=200, deadline=None)
@given(text=texts, at=cuts, how=options)
def test_no_character_is_lost(text: bytes, at: list[int], how: dict[str, Any]) -> None:
    """Where no call was found, content and reasoning hold every character but marks and the whitespace beside them."""
    how = {**how, "stop": ()}
    got, _ = answer_of(writer(**how), pieces_of(text, at, "stop"), stream=True)
    decoded = text.decode("utf-8", "replace")
    if not got.calls and "</think>" not in decoded and "<think>" not in decoded:
        is_reasoning = how["reasoning"] is not None and how["reasoning"].starts_open
        assert got.reasoning + got.content in ({decoded, decoded.lstrip(" \t\r\n")} if is_reasoning else {decoded})


@settings(max_examples=200, deadline=None)
@given(text=texts, at=cuts, how=options)
def test_what_was_handed_out_only_grows_and_is_what_was_paid_for(
    text: bytes, at: list[int], how: dict[str, Any]
) -> None:
    """Observed usage never shrinks, never runs ahead of the engine, and nothing visible is free."""
    answer = writer(count=None, **how)
    tokens = shown = 0
    for piece in pieces_of(text, at, "stop"):
        counted = Piece(text=piece.text, tokens=2 if piece.text else 0, finish=piece.finish)
        out = answer.feed(counted)
        tokens += counted.tokens or 0
        usage = answer.observed().usage
        assert usage is not None
        assert shown <= usage.completion <= tokens
        if b'"content":"' in out.replace(b'"content":""', b"") or b"tool_calls" in out:
            assert usage.completion > 0
            assert answer.observed().content_deltas > 0
        shown = usage.completion
    assert answer.observed().usage is not None


@settings(max_examples=200, deadline=None)
@given(text=texts, stop=stops.filter(bool))
def test_no_stop_text_ever_leaves(text: bytes, stop: tuple[str, ...]) -> None:
    """Of a plain answer exactly what stands before the stop text that is complete first is seen."""
    decoded = text.decode("utf-8", "replace")
    ends = [(decoded.find(word) + len(word), decoded.find(word)) for word in stop if word in decoded]
    got, seen = answer_of(writer(stop=stop), pieces_of(text, list(range(len(text))), "length"), stream=True)
    assert got.content == (decoded[: min(ends)[1]] if ends else decoded)
    assert got.reason == ("stop" if ends else "length")
    assert seen.usage is not None
    assert seen.usage.completion == words(decoded[: min(ends)[0]] if ends else decoded)
