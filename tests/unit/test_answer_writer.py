"""The answer writer: an engine's pieces become the public answer, the same streamed and whole."""

from __future__ import annotations

import json
import math

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from backends.wire.allowance import WAIT
from backends.wire.answer.styles import ReasoningMarks, ToolStyle
from backends.wire.answer.writer import AnswerWriter
from backends.wire.failure import BackendFailure, FailureCode
from backends.wire.request import Kind
from backends.wire.sampling import Piece
from backends.wire.usage import Observed, TokenUsage
from tests.unit.answer_tools import chunks_of, read, read_stream, read_whole, streamed, whole, words, writer

THINK = ReasoningMarks()
OPEN = ReasoningMarks(starts_open=True)


def run(answer: AnswerWriter, *pieces: Piece) -> bytes:
    return b"".join(map(answer.feed, pieces)) + answer.finish()


def said(*texts: str, finish: str = "stop") -> list[Piece]:
    return [Piece(text=text.encode(), tokens=1) for text in texts] + [Piece(finish=finish)]


# -- the form ----------------------------------------------------------------------------------------------------------


def test_the_stream_has_the_same_form_as_that_of_other_engines() -> None:
    """Role chunk, one choice each, an empty last delta, usage when it was asked for; our id, time and model."""
    chunks = chunks_of(run(writer(include_usage=True), *said("a", "é\u2028🙂")))
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "é\u2028🙂"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        [],
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1]["usage"] == {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        ("chatcmpl-1", 1_700_000_000, "ep_x", "chat.completion.chunk")
    }


def test_usage_comes_only_when_asked_for() -> None:
    """Without ``include_usage`` no chunk speaks of usage; a whole answer always does."""
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks_of(run(writer(), *said("a"))))
    answer = writer(stream=False)
    run(answer, *said("a"))
    assert json.loads(answer.whole())["usage"] == {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}


def test_legacy_completions_have_their_own_form() -> None:
    """Text completions stream ``text``, have no role, and neither reason nor call."""
    text = '<think>x</think><tool_call>{"name":"f"}</tool_call>'
    options = {"kind": Kind.COMPLETION, "tools": ToolStyle.HERMES, "reasoning": THINK}
    chunks = chunks_of(run(writer(**options), *said(text)))
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
    ]
    answer = writer(stream=False, **options)
    run(answer, *said(text))
    body = json.loads(answer.whole())
    assert body["object"] == "text_completion"
    assert body["choices"] == [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}]


def test_choices_are_told_apart() -> None:
    """Each of three choices has its role, its text and its end; usage is that of all."""
    answer = writer(completions=3, include_usage=True)
    pieces = [Piece(choice=i % 3, text=f"{i} ".encode(), tokens=2) for i in range(9)]
    out = run(answer, *pieces, *(Piece(choice=i, finish="length" if i else "stop") for i in (2, 0, 1)))
    for index in range(3):
        choice = read_stream(out, index)
        assert choice.content == f"{index} {index + 3} {index + 6} "
        assert choice.reason == ("length" if index else "stop")
    assert chunks_of(out)[-1]["usage"]["completion_tokens"] == 18


@pytest.mark.parametrize("stream", [True, False])
def test_the_openai_client_understands_every_answer(stream: bool) -> None:
    """Text, reasoning, tool calls and log probabilities fit the client's own types."""
    options = {"tools": ToolStyle.HERMES, "reasoning": THINK, "include_usage": True, "stream": stream}
    answer = writer(**options)
    text = '<think>hm</think>Hi <tool_call>{"name":"f","arguments":{"a":1}}</tool_call>'
    out = run(answer, *(Piece(text=c.encode(), tokens=1, logprobs=(-0.5,)) for c in text), Piece(finish="stop"))
    if stream:
        for chunk in chunks_of(out):
            ChatCompletionChunk.model_validate(chunk, strict=True)
        read_again = read_stream(out)
    else:
        ChatCompletion.model_validate(json.loads(answer.whole()), strict=True)
        read_again = read_whole(answer.whole())
    assert (read_again.content, read_again.reasoning, read_again.reason) == ("Hi", "hm", "tool_calls")
    assert read_again.logprobs == [(c, -0.5) for c in text]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_openai_client_puts_a_stream_together(size: int) -> None:
    """The client's own accumulator makes of the stream what the whole answer says, tool calls and usage included."""
    options = {"tools": ToolStyle.HERMES, "reasoning": THINK, "completions": 2}
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Zürich 🙂", "days": [1, 2]}}</tool_call>'
    text = f"<think>hm</think>Hé {call}\n{call}".encode()
    pieces = [
        Piece(choice=choice, text=text[start : start + size])
        for start in range(0, len(text), size)
        for choice in (0, 1)
    ] + [Piece(choice=choice, finish="stop") for choice in (1, 0)]
    state = ChatCompletionStreamState()
    for chunk in chunks_of(run(writer(include_usage=True, **options), *pieces)):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    got = state.get_final_completion().model_dump(exclude_none=True)
    answer = writer(stream=False, **options)
    run(answer, *pieces)
    expected = ChatCompletion.model_validate_json(answer.whole()).model_dump(exclude_none=True)
    for choice in got["choices"]:
        for called in choice["message"]["tool_calls"]:
            called.pop("index")  # the client leaves it there
            assert called["function"].pop("parsed_arguments", None) is None
    assert got["choices"] == expected["choices"]
    assert got["usage"] == expected["usage"]
    assert got["choices"][0]["finish_reason"] == "tool_calls"


# -- characters and stop texts -----------------------------------------------------------------------------------------


def test_a_character_is_never_split() -> None:
    """A character leaves when its last byte is there; what never becomes one is U+FFFD."""
    data = "é中🙂".encode()
    answer = writer(count=None)
    contents = [chunks_of(answer.feed(Piece(text=data[i : i + 1])))[-1:] for i in range(len(data))]
    assert [c[0]["choices"][0]["delta"]["content"] for c in contents if c] == ["é", "中", "🙂"]
    assert streamed([b"a\xff", b"b\xf0\x9f", b"\x98"]).content == "a\ufffdb\ufffd"
    assert whole([b"a\xffb\xf0\x9f\x98"]).content == "a\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("one STOP two", ("STOP",), "one "),
        ("one STO two", ("STOP",), "one STO two"),
        ("one STO", ("STOP",), "one STO"),
        ("abcd", ("abcdef", "cd"), "ab"),
        ("abcdef", ("cd", "bcd"), "a"),
        ("abcdef", ("abcdef", "cd"), "ab"),
        ("abcdef", ("cd", "abcdef"), "ab"),
        ("aab", ("ab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("é🙂x", ("🙂",), "é"),
        ("END", ("", "END"), ""),
        ("x<|eot|>y", ("<|eot|>", "y"), "x"),
    ],
)
def test_an_answer_ends_at_its_first_stop_text(text: str, stop: tuple[str, ...], left: str) -> None:
    """Whole or in pieces, a stop text and what follows it never leave; what only looks like one does."""
    answer = read(text, stop=stop, finish="length")
    assert answer.content == left
    assert answer.reason == ("length" if left == text else "stop")


def test_the_longest_beginning_of_any_stop_text_is_held_back() -> None:
    """Two stop texts may have begun at different places; the earlier one counts."""
    answer = writer(stop=("abcde", "cxxxxx"))
    assert chunks_of(answer.feed(Piece(text=b"xxabc")))[-1]["choices"][0]["delta"] == {"content": "xx"}
    assert chunks_of(answer.feed(Piece(text=b"de")))[-1]["choices"][0]["finish_reason"] == "stop"


def test_half_a_stop_text_is_held_back() -> None:
    """No prefix of a stop text leaves before it is known to be none."""
    answer = writer(stop=("STOP",))
    assert answer.feed(Piece(text=b"ST")) == b""
    assert chunks_of(answer.feed(Piece(text=b"AST")))[-1]["choices"][0]["delta"] == {"content": "STA"}
    out = answer.feed(Piece(text=b"OP and more"))
    assert [c["choices"][0]["finish_reason"] for c in chunks_of(out)] == ["stop"]
    assert answer.is_done
    assert answer.engine_goes_on
    assert answer.feed(Piece(text=b"more", tokens=50)) == b""


@pytest.mark.parametrize("text", ["<think>a STOP b</think>", '<tool_call>{"name":"f","arguments":{"a":"STOP"}}'])
def test_stop_texts_count_in_reasoning_and_calls_as_well(text: str) -> None:
    """The engine would stop there, whatever the text means to us."""
    answer = read(text, stop=("STOP",), tools=ToolStyle.HERMES, reasoning=THINK)
    assert "STOP" not in f"{answer}"
    assert answer.reason == "stop"
    assert answer.reasoning == "a " or answer.calls[0]["arguments"] == '{"a":"'


def test_an_engine_that_ends_itself_needs_no_cancel() -> None:
    """Only a stop text that we found before the engine said its end leaves an engine that may go on."""
    for pieces in (said("a"), [Piece(text=b"a STOP", finish="stop")]):
        answer = writer(stop=("STOP",))
        run(answer, *pieces)
        assert answer.is_done
        assert not answer.engine_goes_on


# -- reasoning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "marks", "reasoning", "content"),
    [
        ("<think>\nhm, \n so\n</think>\n\nHi\n", THINK, "hm, \n so", "Hi\n"),
        (" \n<think>hm</think>Hi", THINK, "hm", "Hi"),
        ("hm\n</think>\n\nHi", OPEN, "hm", "Hi"),
        ("<think>hm</think>Hi", OPEN, "hm", "Hi"),
        ("<think>\n\n</think>\n\nHi", THINK, "", "Hi"),
        ("<think>hm </thi", THINK, "hm </thi", ""),
        ("hm ", OPEN, "hm ", ""),
        ("<thin", THINK, "", "<thin"),
        ("<thin", OPEN, "<thin", ""),
        ("\nHi", THINK, "", "\nHi"),
        ("The mark <think> opens, </think> closes", THINK, "", "The mark <think> opens, </think> closes"),
        ("<think>a</think>b<think>c</think>", THINK, "a", "b<think>c</think>"),
        ("[R]a[/R]b", ReasoningMarks("[R]", "[/R]"), "a", "b"),
        ("", THINK, "", ""),
    ],
)
def test_reasoning_is_parted_from_the_answer(text: str, marks: ReasoningMarks, reasoning: str, content: str) -> None:
    """What stands between the marks at the beginning is reasoning, wherever the text is cut."""
    answer = read(text, reasoning=marks)
    assert (answer.reasoning, answer.content) == (reasoning, content)


def test_without_marks_everything_is_content() -> None:
    """A model that marks nothing may write marks."""
    assert read("<think>a</think>b").content == "<think>a</think>b"


def test_calls_follow_reasoning_and_are_not_looked_for_in_it() -> None:
    """A call that the model only thinks about is not made."""
    call = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
    answer = read(f"<think>{call}</think>\n{call}", reasoning=THINK, tools=ToolStyle.HERMES)
    assert (answer.reasoning, len(answer.calls), answer.content) == (call, 1, "")


# -- why it ended ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("finish", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")])
def test_the_reason_is_the_engines_unless_a_call_was_made(finish: str, reason: str) -> None:
    """An engine knows ``stop`` and ``length``; a call that nobody parsed is none."""
    assert read("a", finish=finish).reason == reason


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_never_ended_has_failed(stream: bool) -> None:
    """An engine that stops inside an answer is not taken for one that has finished."""
    answer = writer(stream=stream, completions=2)
    answer.feed(Piece(text=b"a", finish="stop"))
    assert not answer.is_done
    with pytest.raises(BackendFailure) as failed:
        answer.finish() if stream else answer.whole()
    assert failed.value.code is FailureCode.PROTOCOL


def test_an_engine_that_gave_up_has_failed() -> None:
    """Its own word for breaking off is no finish reason."""
    with pytest.raises(BackendFailure):
        writer().feed(Piece(text=b"a", finish="cancelled"))


@pytest.mark.parametrize("choice", [-1, 1])
def test_a_choice_that_nobody_asked_for_is_a_failure(choice: int) -> None:
    """An engine that answers more often than it was asked is not understood."""
    with pytest.raises(BackendFailure):
        writer().feed(Piece(choice=choice, text=b"a"))


# -- log probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_stand_beside_their_tokens(stream: bool) -> None:
    """Held back or not, each token is told once, in order; those of a stop text are not, and none is infinite."""
    answer = writer(stream=stream, stop=("END",))
    tokens = ["a", " E", "b", "", "é", "E", "ND"]
    scores = [-0.25, -0.5, -math.inf, -1.0, -2.0, -3.0, -4.0]
    out = b"".join(answer.feed(Piece(text=t.encode(), logprobs=(s,))) for t, s in zip(tokens, scores, strict=True))
    answer.finish()
    read_again = read_stream(out) if stream else read_whole(answer.whole())
    expected = list(zip(tokens[:5], [-0.25, -0.5, -9999.0, -1.0, -2.0], strict=True))
    assert (read_again.content, read_again.logprobs) == ("a Ebé", expected)


def test_a_token_that_becomes_two_chunks_is_scored_once() -> None:
    """One piece may hold reasoning and content; its log probability is told with the first."""
    out = run(writer(reasoning=THINK), Piece(text=b"<think>a</think>b", logprobs=(-0.5,), finish="stop"))
    assert read_stream(out).logprobs == [("<think>a</think>b", -0.5)]


def test_legacy_logprobs_have_their_offsets() -> None:
    """A text completion's form counts characters from the beginning of its text."""
    answer = writer(kind=Kind.COMPLETION, stream=False)
    run(answer, Piece(text="é".encode(), logprobs=(-1.0,)), Piece(text=b"bc", logprobs=(-2.0,), finish="stop"))
    assert json.loads(answer.whole())["choices"][0]["logprobs"] == {
        "tokens": ["é", "bc"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": None,
        "text_offset": [0, 1],
    }


# -- usage -------------------------------------------------------------------------------------------------------------


def usage_of(answer: AnswerWriter) -> TokenUsage:
    usage = answer.observed().usage
    assert usage is not None
    return usage


def test_the_engines_own_counts_are_added_up() -> None:
    """Tokens count though they show nothing: halves of characters, held text, tokens without text; the prompt, too."""
    answer = writer(stop=("STOP",), count=words)
    pieces = [Piece(text=b"a", tokens=3, prompt_tokens=7), Piece(text=b"\xc3", tokens=1), Piece(tokens=1)]
    run(answer, *pieces, Piece(text=b"ST", tokens=2), Piece(tokens=1, finish="length"))
    assert answer.observed() == Observed(TokenUsage(7, 8), 3)


def test_a_tokenizer_counts_where_the_engine_does_not() -> None:
    """The generated text with all its marks, up to and with its stop text; reasoning apart."""
    text = '<think>one two</think>Hi <tool_call>{"name":"f"}</tool_call>.'
    answer = writer(reasoning=THINK, tools=ToolStyle.HERMES, stop=("END",))
    run(answer, *(Piece(text=bit.encode()) for bit in (text[:20], text[20:], "E", "ND and more")))
    assert usage_of(answer) == TokenUsage(9, words(text + "END"), reasoning=3, reported=False)


def test_reasoning_is_never_more_than_all() -> None:
    """Our tokenizer and the engine may differ; a part is still no larger than the whole."""
    answer = writer(reasoning=THINK)
    run(answer, Piece(text=b"<think>a b c d e</think>", tokens=4, finish="stop"))
    assert usage_of(answer) == TokenUsage(9, 4, reasoning=4)


def test_a_prompt_that_nobody_counted_leaves_usage_unknown() -> None:
    """Whoever bills must not take an unknown prompt for an empty one; an engine that tells it later is believed."""
    answer = writer(prompt_tokens=None, include_usage=True)
    answer.feed(Piece(text=b"a", tokens=1))
    assert answer.observed() == Observed(None, 1)
    out = run(answer, Piece(text=b"b", tokens=1, prompt_tokens=4), Piece(finish="stop"))
    assert answer.observed() == Observed(TokenUsage(4, 2), 2)
    assert chunks_of(out)[-1]["usage"]["prompt_tokens"] == 4
    unknown = writer(prompt_tokens=None, stream=False)
    run(unknown, *said("a"))
    assert "usage" not in json.loads(unknown.whole())


def test_without_both_pieces_are_counted() -> None:
    """A piece with text is a token at least."""
    answer = writer(count=None)
    run(answer, Piece(text=b"a"), Piece(), Piece(text=b"b"), Piece(finish="stop"))
    assert answer.observed() == Observed(TokenUsage(9, 2, reported=False), 2)


def test_a_count_that_lacks_a_piece_is_not_believed() -> None:
    """An engine that counts only some of its pieces is charged for the others by one each."""
    answer = writer()
    run(answer, Piece(text=b"a b c", tokens=4), Piece(text=b"d"), Piece(finish="stop"))
    assert usage_of(answer) == TokenUsage(9, 5, reported=False)


@pytest.mark.parametrize("count", [words, None])
@pytest.mark.parametrize("tokens", [1, None])
def test_what_was_not_handed_out_is_not_observed(count: object, tokens: int | None) -> None:
    """A client that leaves while half a stop text is held back has not got it, and does not pay for it."""
    answer = writer(stop=("STOP",), count=words if count else None)
    answer.feed(Piece(text=b"ST", tokens=tokens))
    assert answer.observed().content_deltas == 0
    assert usage_of(answer).completion == 0
    answer.feed(Piece(text=b"a", tokens=tokens))
    assert answer.observed().content_deltas == 2
    assert usage_of(answer).completion == (2 if tokens or not count else 1)


def test_a_long_text_is_counted_exactly() -> None:
    """The count on the way may be off by little; at the end it is that of the whole text."""
    texts = [f"word{number}, " for number in range(2000)]
    answer = writer()
    for text in texts:
        answer.feed(Piece(text=text.encode()))
    assert abs(usage_of(answer).completion - words("".join(texts))) <= 20
    run(answer, Piece(finish="stop"))
    assert usage_of(answer).completion == words("".join(texts))


# -- what may be handed out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 0, None])
@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_allowance_of_any_size_changes_no_byte(size: int, tokens: int | None) -> None:
    """Asked every n pieces, told to wait each time: the client gets the same stream, in order."""
    texts = ["<think>hm", "</think>", "Hi ", "ST", "A", '<tool_call>{"name":"f"', ',"arguments":{', "}}", "x", " y"]
    options = {"stop": ("STOP",), "tools": ToolStyle.HERMES, "reasoning": THINK, "include_usage": True}
    pieces = [Piece(text=text.encode(), tokens=tokens) for text in texts] + [Piece(finish="stop")]
    expected = run(writer(**options), *pieces)
    asked: list[int] = []

    def allow(seen: Observed) -> int:
        if seen.content_deltas == 0 or (asked and asked[-1] == seen.content_deltas):
            return size
        asked.append(seen.content_deltas)
        return WAIT

    answer = writer(allow=allow, **options)
    out = b""
    for piece in pieces:
        out += answer.feed(piece)
        if answer.is_waiting:
            assert answer.feed(Piece()) == b""
            out += answer.go_on()
            assert not answer.is_waiting
    assert out + answer.finish() == expected
    assert asked == list(range(size + 1, len(texts) + 1, size + 1))


def test_pieces_that_come_meanwhile_wait_their_turn() -> None:
    """Whatever arrives while a piece waits follows it, as far as is allowed."""
    grants = [1, WAIT, 1, WAIT, 5]

    answer = writer(allow=lambda seen: grants.pop(0))
    out = answer.feed(Piece(text=b"a"))
    for text in (b"b", b"c", b"d"):
        assert answer.feed(Piece(text=text)) == b""
    assert answer.feed(Piece(finish="stop")) == b""
    assert answer.is_waiting
    out += answer.go_on()
    assert answer.is_waiting
    assert read_stream(out).content == "abc"
    out += answer.go_on() + answer.finish()
    assert (read_stream(out).content, read_stream(out).reason) == ("abcd", "stop")


@pytest.mark.parametrize(("count", "completion"), [(None, 5), (words, 6)])
def test_an_allowance_is_asked_with_what_the_piece_will_have_cost(count: object, completion: int) -> None:
    """What is not handed out yet is not observed; who allows it sees the whole cost, held text included."""
    asked: list[Observed] = []

    def allow(seen: Observed) -> int:
        asked.append(seen)
        return WAIT if seen.content_deltas == 3 else 0

    tokens = None if count else 1
    answer = writer(allow=allow, stop=("STOP",), count=words if count else None)
    answer.feed(Piece(text=b"a", tokens=tokens))
    answer.feed(Piece(text=b"ST", tokens=tokens))
    answer.feed(Piece(text=b" b c", tokens=3 if tokens else None))
    assert answer.is_waiting
    assert asked[-1] == Observed(TokenUsage(9, completion, reported=not count), 3)
    assert answer.observed().content_deltas == 1
    assert usage_of(answer).completion == 1


def test_an_end_is_not_asked_for() -> None:
    """A stream that stops where its allowance does is whole; nor is a whole answer asked for."""
    asked: list[int] = []

    def allow(seen: Observed) -> int:
        asked.append(seen.content_deltas)
        return 3

    out = run(writer(allow=allow, include_usage=True), *said("a", "b", "c"))
    assert asked == [0]
    assert out == run(writer(include_usage=True), *said("a", "b", "c"))
    run(writer(allow=lambda seen: WAIT, stream=False), *said("a"))


def test_a_cut_ends_every_choice_once() -> None:
    """Of three choices one has ended, one has spoken, one has not: two get ``length``, one of them its role."""
    answer = writer(completions=3, include_usage=True, stop=("STOP",))
    answer.feed(Piece(text=b"a", tokens=1, finish="stop"))
    answer.feed(Piece(choice=1, text=b"b ST", tokens=1))
    before = answer.observed()
    chunks = chunks_of(answer.cut(TokenUsage(9, 2)))
    ends = [(c["index"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]]
    assert ends == [(1, "length"), (2, None), (2, "length")]
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert answer.is_done
    assert answer.feed(Piece(choice=1, text=b"late", tokens=9)) + answer.finish() == b""
    assert answer.observed() == before


def test_a_cut_leaves_out_what_waits() -> None:
    """What was not paid for is neither handed out nor counted, then or later."""
    answer = writer(allow=lambda seen: WAIT if seen.content_deltas else 1)
    out = answer.feed(Piece(text=b"a", tokens=1)) + answer.feed(Piece(text=b"b", tokens=1))
    assert answer.is_waiting
    out += answer.cut(None) + answer.go_on()
    assert (read_stream(out).content, read_stream(out).reason) == ("a", "length")
    assert answer.observed() == Observed(TokenUsage(9, 1), 1)
