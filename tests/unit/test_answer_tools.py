"""Tool calls in a model's text: found while they come, the same streamed and not, and never a character lost."""

from __future__ import annotations

import json
import re

import pytest

from backends.wire.answer.styles import ToolStyle
from backends.wire.sampling import Piece
from tests.unit.answer_tools import Read, chunks_of, read, writer

HERMES, LLAMA3, MISTRAL = ToolStyle.HERMES, ToolStyle.LLAMA3, ToolStyle.MISTRAL
PARIS = '{"city": "Paris \\u00e9 }]", "days": [1, {"x": null}]}'
ROME = '{"city":"Rome"}'


def calls_of(answer: Read) -> list[tuple[str, str]]:
    return [(call["name"], call["arguments"]) for call in answer.calls]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "weather", "arguments": @PARIS}\n</tool_call>'),
        (HERMES, '\n\n<tool_call>{"arguments": @PARIS, "name": "weather"}</tool_call>\n'),
        (HERMES, '<tool_call>{"id":"x","name":"weather","type":"function","arguments":@PARIS,"y":[1]}'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": @PARIS</tool_call>'),
        (HERMES, '<tool_call>{"name": "weather", "arguments": @STRING}</tool_call>'),
        (LLAMA3, '{"name": "weather", "parameters": @PARIS}'),
        (LLAMA3, ' {"type": "function", "name": "weather", "parameters": @PARIS}'),
        (LLAMA3, '<|python_tag|>{"name": "weather", "parameters": @PARIS}'),
        (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": @PARIS}]'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": @PARIS, "id": "abcdefghi"}]'),
        (MISTRAL, '[TOOL_CALLS] {"name": "weather", "arguments": @PARIS}'),
        (MISTRAL, "[TOOL_CALLS]weather@PARIS"),
        (MISTRAL, "[TOOL_CALLS]weather[ARGS]@PARIS"),
        (MISTRAL, "[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS] @PARIS"),
    ],
)  # fmt: skip
def test_a_call_of_each_form_is_found(style: ToolStyle, text: str) -> None:
    """Whatever the form, the client gets the name, the model's own arguments, and ``tool_calls`` as the reason."""
    answer = read(text.replace("@PARIS", PARIS).replace("@STRING", json.dumps(PARIS)), tools=style)
    assert calls_of(answer) == [("weather", PARIS)]
    assert (answer.content, answer.reason) == ("", "tool_calls")
    assert re.fullmatch(r"call_[0-9a-f]{24}", answer.calls[0]["id"])


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (HERMES, '<tool_call>{"name":"weather","arguments":%s}</tool_call>\n<tool_call>{"name":"f"}</tool_call>'),
        (LLAMA3, '{"name":"weather","parameters":%s}; {"name":"f","parameters":{}}'),
        (LLAMA3, '<|python_tag|>{"name":"weather","parameters":%s};<|python_tag|>{"name":"f"}'),
        (MISTRAL, '[TOOL_CALLS][{"name":"weather","arguments":%s}, {"name":"f","arguments":null}]'),
        (MISTRAL, "[TOOL_CALLS]weather%s[TOOL_CALLS]f{}"),
    ],
)
def test_several_calls_are_numbered_in_order(style: ToolStyle, text: str) -> None:
    """Parallel calls are told apart by index and id; a call without arguments has an empty object."""
    answer = read(text % ROME, tools=style)
    assert calls_of(answer) == [("weather", ROME), ("f", "{}")]
    assert len({call["id"] for call in answer.calls}) == 2
    assert (answer.content, answer.reason) == ("", "tool_calls")


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (HERMES, '<tool_call>{"name":"weather","arguments":%s}</tool_call>\n<tool_call>{"name":"f"}</tool_call>'),
        (LLAMA3, '{"name":"weather","parameters":%s}; {"name":"f","parameters":{}}'),
        (MISTRAL, '[TOOL_CALLS][{"name":"weather","arguments":%s}, {"name":"f","arguments":{}}]'),
    ],
)
def test_without_parallel_calls_only_the_first_counts(style: ToolStyle, text: str) -> None:
    """``parallel_tool_calls: false`` leaves one call, and the others are no content either."""
    answer = read(text % ROME, tools=style, body={"parallel_tool_calls": False})
    assert (calls_of(answer), answer.content, answer.reason) == ([("weather", ROME)], "", "tool_calls")


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (HERMES, "<tool_call>not json</tool_call> and more"),
        (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>'),
        (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f", '),
        (HERMES, "<tool_call>"),
        (HERMES, " a <tool_c"),
        (LLAMA3, '{"name": "Bob", "parameters": {"age": 5}}'),
        (LLAMA3, '{"name": "f"}'),
        (LLAMA3, '{"result": {"name": "f", "parameters": {}}}'),
        (LLAMA3, '{"name": "f", "parameters": 7}'),
        (LLAMA3, 'I say {"name": "f", "parameters": {}}'),
        (LLAMA3, '<|python_tag|>brave_search.call(query="x")'),
        (LLAMA3, " \n"),
        (MISTRAL, "[TOOL_CALLS]"),
        (MISTRAL, "[TOOL_CALLS] \n"),
        (MISTRAL, "[TOOL_CALLS]two words{}"),
        (MISTRAL, "[TOOL_CALLS]" + "x" * 300 + "{}"),
        (MISTRAL, "[TOOL_CALLS]f" + " " * 255 + "{}"),
        (MISTRAL, "[TOOL_CALLS]!{}"),
        (MISTRAL, '[TOOL_CALLS]["a"]'),
        (MISTRAL, "[TOOL_CALLS] f[ARGS]"),
    ],
)  # fmt: skip
def test_what_is_no_call_is_content_to_the_last_character(style: ToolStyle, text: str) -> None:
    """A malformed or truncated call comes out as the text that it is, marks and all."""
    answer = read(text, tools=style)
    assert (answer.content, answer.calls, answer.reason) == (text, [], "stop")


def test_a_good_call_behind_a_broken_one_is_found() -> None:
    """One that is malformed does not hide the next."""
    answer = read('<tool_call>oops <tool_call>{"name":"f","arguments":{}}</tool_call>', tools=HERMES)
    assert (answer.content, calls_of(answer)) == ("<tool_call>oops", [("f", "{}")])


def test_text_around_calls_stays_content() -> None:
    """What the model says before, between and behind its calls is content; whitespace next to calls is not."""
    text = 'Let me see.\n\n<tool_call>{"name":"f"}</tool_call> \nAnd: <tool_call>{"name":"g"}</tool_call>\nDone. '
    answer = read(text, tools=HERMES)
    assert (answer.content, calls_of(answer)) == ("Let me see.And:Done. ", [("f", "{}"), ("g", "{}")])


@pytest.mark.parametrize(
    ("style", "text", "finish", "reason"),
    [
        (HERMES, '<tool_call>{"name":"f","arguments":{"a": "lon', "length", "length"),
        (HERMES, '<tool_call>{"name":"f","arguments":{"a": "lon', "stop", "stop"),
        (MISTRAL, '[TOOL_CALLS]f{"a": "lon', "length", "length"),
        (LLAMA3, '{"name":"f","parameters":{"a": "lon', "length", "length"),
    ],
)
def test_a_call_that_was_cut_off_keeps_its_beginning(style: ToolStyle, text: str, finish: str, reason: str) -> None:
    """As with OpenAI, arguments end where the tokens did, and the reason tells that no whole call came."""
    answer = read(text, tools=style, finish=finish)
    assert (calls_of(answer), answer.content, answer.reason) == ([("f", '{"a": "lon')], "", reason)


def test_arguments_are_given_once() -> None:
    """A second object of arguments is none."""
    answer = read('<tool_call>{"name":"f","arguments":{},"parameters":{"a":1},"name":"g"}</tool_call>', tools=HERMES)
    assert (calls_of(answer), answer.content) == ([("f", "{}")], "")


def test_a_separator_that_nothing_follows_is_no_content() -> None:
    """A list of calls that was cut off behind a comma holds the calls before it."""
    answer = read('[TOOL_CALLS][{"name":"f"}, ', tools=MISTRAL, finish="length")
    assert (calls_of(answer), answer.content) == ([("f", "{}")], "")


def test_arguments_that_break_end_there() -> None:
    """A bracket that closes nothing ends the arguments; what follows is content, and no call is claimed."""
    answer = read('<tool_call>{"name":"f","arguments":{"a": [}}</tool_call>', tools=HERMES)
    assert (calls_of(answer), answer.content, answer.reason) == ([("f", '{"a": [')], "}}</tool_call>", "stop")


@pytest.mark.parametrize(
    "body",
    [{"tool_choice": "none"}, {"tools": []}, {"tools": None}],
)
def test_without_tools_marks_are_text(body: dict[str, object]) -> None:
    """With ``tool_choice: none``, or no tools at all, a call is what the model chose to write."""
    text = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
    answer = read(text, tools=HERMES, body=body)
    assert (answer.content, answer.calls, answer.reason) == (text, [], "stop")


@pytest.mark.parametrize(
    ("style", "text"),
    [
        (HERMES, '<tool_call>{"name":"g","arguments":{}}</tool_call>'),
        (LLAMA3, '{"name":"g","parameters":{}}'),
        (MISTRAL, "[TOOL_CALLS]g{}"),
        (MISTRAL, '[TOOL_CALLS][{"name":"g"}]'),
    ],
)
def test_a_named_choice_takes_calls_of_that_function_only(style: ToolStyle, text: str) -> None:
    """Another function than the one that was demanded is not called."""
    named = {"tool_choice": {"type": "function", "function": {"name": "f"}}}
    assert read(text, tools=style, body=named).content == text
    assert calls_of(read(text.replace("g", "f", 1), tools=style, body=named)) == [("f", "{}")]
    assert calls_of(read(text, tools=style, body={"tool_choice": "required"})) == [("g", "{}")]


def test_arguments_leave_as_they_come() -> None:
    """Name and id go out with the first bit of the arguments, which follow piece by piece."""
    answer = writer(tools=HERMES)
    before = answer.feed(Piece(text=b'<tool_call>{"name": "wea'))
    before += answer.feed(Piece(text=b'ther", "arguments": '))
    assert before == b""
    parts = [answer.feed(Piece(text=part)) for part in (b'{"ci', b'ty": "Pa', b'ris"', b"}", b"}</tool_call>")]
    said = [chunks_of(part)[-1]["choices"][0]["delta"]["tool_calls"][0] for part in parts[:4]]
    assert said[0] == {
        "index": 0,
        "id": said[0]["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": '{"ci'},
    }
    assert [call["function"] for call in said[1:]] == [{"arguments": a} for a in ('ty": "Pa', 'ris"', "}")]
    assert parts[4] == b""


def test_ids_are_the_same_for_the_same_answer() -> None:
    """Written twice, an answer has the same ids; another choice has others."""
    text = '<tool_call>{"name":"f"}</tool_call>'
    assert read(text, tools=HERMES).calls == read(text, tools=HERMES).calls
    answer = writer(tools=HERMES, stream=False, completions=2)
    for choice in (0, 1):
        answer.feed(Piece(choice=choice, text=text.encode(), finish="stop"))
    choices = json.loads(answer.whole())["choices"]
    assert choices[0]["message"]["tool_calls"][0]["id"] != choices[1]["message"]["tool_calls"][0]["id"]
    assert [choice["message"]["content"] for choice in choices] == [None, None]


def test_a_json_answer_is_not_kept_back_for_long() -> None:
    """A Llama that answers in JSON streams as soon as a key shows that it calls nothing."""
    answer = writer(tools=LLAMA3)
    assert answer.feed(Piece(text=b'{"res')) == b""
    assert answer.feed(Piece(text=b'ult": ')) != b""


def test_many_open_marks_are_text() -> None:
    """A text of nothing but beginnings is content, however long; each is looked at once."""
    text = '<tool_call>{"a":"' * 4000
    answer = writer(tools=HERMES, count=None, stream=False)
    answer.feed(Piece(text=text.encode(), finish="stop"))
    assert json.loads(answer.whole())["choices"][0]["message"]["content"] == text
