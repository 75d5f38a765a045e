"""Prompts are what each format prescribes, to the letter, and a template can do nothing but write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

from backends.wire import jinja_sandbox
from backends.wire.chat_template import BrokenTemplate, ChatTemplate
from backends.wire.failure import BackendFailure, FailureCode, Unsupported
from tests.models.formats import FORMATS

PNG = "data:image/png;base64,iVBORw0KGgo="
USER: dict[str, Any] = {"role": "user", "content": "Hello <you>"}
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
TURNS = [USER, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Café?"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL_ID = "call_0123456789abcdef01234567"
CALL: dict[str, Any] = {
    "id": CALL_ID,
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"city":"Köln <1>"}'},
}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": CALL_ID, "content": "rain"}
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PARTS_ONLY = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ raise_exception('Parts!') }}{% endif %}"
    "{% for p in m['content'] %}{{ p.text if p.type == 'text' }}|{% endfor %}"
    "{% endfor %}"
)


def template(name: str) -> ChatTemplate:
    form = FORMATS[name]
    return ChatTemplate(form.template, special_tokens=form.special_tokens, now=lambda: datetime(2026, 3, 4, 23, 59))


def custom(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>"}, **options)


def refused(source: ChatTemplate, messages: Sequence[Any], **options: Any) -> tuple[str, str]:
    with pytest.raises(Unsupported) as caught:
        source.render(messages, **options)
    return caught.value.param, caught.value.reason


# -- the formats -------------------------------------------------------------------------------------------------------

LLAMA3_HEAD = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 04 Mar 2026\n\n{}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
)
LLAMA3_ANSWER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
LLAMA3_TURNS = (
    LLAMA3_HEAD.format("Be brief.") + "Hello <you>" + LLAMA3_ANSWER + "Hi.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nCafé?" + LLAMA3_ANSWER
)
CHATML_TURNS = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <you><|im_end|>\n<|im_start|>assistant\nHi."
    "<|im_end|>\n<|im_start|>user\nCafé?<|im_end|>\n<|im_start|>assistant\n"
)
MISTRAL_TURNS = "<s>[INST] Hello <you>[/INST] Hi.</s>[INST] Be brief.\n\nCafé?[/INST]"


@pytest.mark.parametrize(
    ("name", "prompt"), [("llama3", LLAMA3_TURNS), ("chatml", CHATML_TURNS), ("mistral", MISTRAL_TURNS)]
)
def test_a_conversation_is_written_as_its_format_says(name: str, prompt: str) -> None:
    """System, user and assistant stand between the marks of each format, and nothing is escaped as for a web page."""
    assert template(name).render([SYSTEM, *TURNS]) == prompt


def test_gemma_has_turns_of_its_own() -> None:
    """Gemma calls the assistant model, and takes no system message: one is refused by name."""
    assert template("gemma").render(TURNS) == (
        "<bos><start_of_turn>user\nHello <you><end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nCafé?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert refused(template("gemma"), [SYSTEM, USER]) == ("messages[0].role", "must not be system with this model")


LLAMA3_TOOLS = (
    LLAMA3_HEAD.format("") + 'Answer with a call, as {"name": ..., "parameters": {...}}, of one of these functions.\n\n'
    + json.dumps(TOOL, indent=4) + "\n\nHello <you>" + LLAMA3_ANSWER
    + '{"name": "look_up", "parameters": {"city": "Köln <1>"}}<|eot_id|>'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"rain"' + LLAMA3_ANSWER
)  # fmt: skip
CHATML_TOOLS = (
    "<|im_start|>system\n# Tools\n\nThese functions may be called:\n<tools>\n" + json.dumps(TOOL)
    + '\n</tools>\n\nCall one like this:\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\nHello <you><|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
    '{"name": "look_up", "arguments": {"city": "Köln <1>"}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)  # fmt: skip
MISTRAL_TOOLS = (
    "<s>[AVAILABLE_TOOLS] [" + json.dumps(TOOL) + "][/AVAILABLE_TOOLS][INST] Hello <you>[/INST]"
    '[TOOL_CALLS] [{"name": "look_up", "arguments": {"city": "Köln <1>"}, "id": "ID"}]</s>'
    '[TOOL_RESULTS] {"content": "rain", "call_id": "ID"}[/TOOL_RESULTS]'
)


@pytest.mark.parametrize(("name", "prompt"), [("llama3", LLAMA3_TOOLS), ("chatml", CHATML_TOOLS)])
def test_tools_calls_and_results_are_written(name: str, prompt: str) -> None:
    """Tools, a call with its arguments as the object they are, and its result reach the model."""
    assert template(name).render([USER, CALLING, RESULT], tools=[TOOL]) == prompt


def test_a_format_with_short_ids_gets_them() -> None:
    """Where ids must have nine characters, call and result get the same short one; one that fits stays as it is."""
    prompt = template("mistral").render([USER, CALLING, RESULT], tools=[TOOL])
    short = prompt.partition('"id": "')[2][:9]
    assert short.isalnum()
    assert prompt == MISTRAL_TOOLS.replace("ID", short)
    kept = {**CALLING, "tool_calls": [{**CALL, "id": "abcDEF123"}]}
    prompt = template("mistral").render([USER, kept, {**RESULT, "tool_call_id": "abcDEF123"}], tools=[TOOL])
    assert prompt == MISTRAL_TOOLS.replace("ID", "abcDEF123")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("with_tools", [False, True])
def test_the_beginning_is_written_once(name: str, with_tools: bool) -> None:
    """The token that begins a text stands once in a prompt, where the format has one."""
    form = FORMATS[name]
    tools = [TOOL] if with_tools and name != "gemma" else None
    prompt = template(name).render([USER], tools=tools)
    if form.bos is None:
        assert "None" not in prompt
    else:
        assert prompt.startswith(form.bos)
        assert prompt.count(form.bos) == 1


# -- what a template takes ---------------------------------------------------------------------------------------------


def test_text_parts_are_joined_for_a_template_of_texts() -> None:
    """Content in parts is the same as content in lines where a template takes only text."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert custom(PLAIN).render([{"role": "user", "content": parts}]) == "[user]one\ntwo"


def test_parts_stay_parts_for_a_template_of_parts() -> None:
    """A template that goes through parts gets each of them, and a text as the one part it is."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    only = custom(PARTS_ONLY)
    told = [SYSTEM, {"role": "user", "content": parts}, {"role": "assistant", "content": "Hi."}]
    assert only.render(told) == "[system]Be brief.|[user]one|two|[assistant]Hi.|"
    both = [{"role": "user", "content": parts}]
    assert template("gemma").render(both) == ("<bos><start_of_turn>user\nonetwo<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"type": "image_url", "image_url": {"url": PNG}}, "an image"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "audio"),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_images_and_audio_are_refused_by_name(name: str, part: dict[str, Any], named: str) -> None:
    """No part of a message is left out in silence: what is not text is refused, with its place."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "See"}, part]}]
    param, reason = refused(template(name), messages)
    assert (param, reason) == ("messages[0].content[1]", f"must not be {named}: this model takes text only")


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    """The newer name of the system role works with templates that are older than it, and reaches those that know it."""
    developer = {**SYSTEM, "role": "developer"}
    assert template("chatml").render([developer, *TURNS]) == CHATML_TURNS
    knows = custom("{% for m in messages %}{{ 'D' if m.role == 'developer' else m.role }}:{{ m.content }};{% endfor %}")
    assert knows.render([developer]) == "D:Be brief.;"
    assert refused(template("gemma"), [developer, USER]) == (
        "messages[0].role",
        "must not be developer with this model",
    )


def test_arguments_stay_text_where_the_template_joins_text() -> None:
    """A template that puts a call together from texts gets the arguments as the JSON they came as."""
    source = (
        "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
        "{{ 'CALL ' + c.function.name + ' ' + c.function.arguments }}{% endfor %}"
        "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    )
    prompt = custom(source).render([USER, CALLING, RESULT])
    assert prompt == '[user]Hello <you>CALL look_up {"city":"Köln <1>"}[tool]rain'
    empty = {**CALL, "function": {"name": "look_up", "arguments": ""}}
    assert "CALL look_up {}" in custom(source).render([USER, {**CALLING, "tool_calls": [empty]}])


def test_arguments_are_never_written_as_python() -> None:
    """A template that just writes the arguments gets text, since an object would be written as Python has it."""
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}:"
        "{{ c.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert custom(source).render([USER, CALLING, RESULT]) == 'Hello <you>look_up:{"city":"Köln <1>"}rain'


def test_no_part_is_left_out_by_a_template_that_reads_only_the_first() -> None:
    """Parts are joined for a template that would write one of them and leave out the rest."""
    first = custom("{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert first.render([{"role": "user", "content": parts}]) == "one\ntwo"


def test_a_call_without_words_is_told_by_null_where_the_template_asks_for_it() -> None:
    """A template that knows a call by its missing content gets null; no other ever writes ``None``."""
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}{{ m.tool_calls | tojson }}"
        "{% else %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}"
    )
    assert custom(source).form.null_content
    assert '"city": "Köln <1>"' in custom(source).render([USER, {**CALLING, "content": ""}])
    assert "None" not in template("chatml").render([USER, CALLING])


def test_a_result_bears_the_name_of_what_was_called() -> None:
    """Templates may write the function's name with its result, which the request gives only with the call."""
    source = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ m.name }}={{ m.content }}"
        "{% elif m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert custom(source).render([USER, CALLING, RESULT]).endswith("look_up=rain")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([USER, CALLING], "messages[1].tool_calls"),
        ([USER, RESULT], "messages[1].role"),
        ([USER, {**USER, "role": "assistant", "function_call": {"name": "f"}}], "messages[1].function_call"),
    ],
)
def test_what_a_template_has_no_place_for_is_refused(messages: list[dict[str, Any]], param: str) -> None:
    """A template without calls refuses calls and their results, rather than leave them out."""
    assert refused(template("gemma"), messages)[0] == param


def test_tools_are_refused_where_the_template_would_leave_them_out() -> None:
    """A model that would never hear of the tools is not asked; an empty list asks for none."""
    assert refused(template("gemma"), [USER], tools=[TOOL]) == ("tools", "are not possible with this model")
    assert template("gemma").render([USER], tools=[]) == template("gemma").render([USER])


@pytest.mark.parametrize(
    ("call", "param"),
    [
        ("no object", "messages[1].tool_calls[0]"),
        ({"id": "a", "function": {"arguments": "{}"}}, "messages[1].tool_calls[0]"),
        ({"function": {"name": "f", "arguments": "{}"}}, "messages[1].tool_calls[0].id"),
        ({"id": "a", "function": {"name": "f", "arguments": "[1]"}}, "messages[1].tool_calls[0].function.arguments"),
        ({"id": "a", "function": {"name": "f", "arguments": "{"}}, "messages[1].tool_calls[0].function.arguments"),
        ({"id": "a", "function": {"name": "f", "arguments": {}}}, "messages[1].tool_calls[0].function.arguments"),
    ],
)
def test_a_call_that_is_none_is_refused(call: Any, param: str) -> None:
    """A broken tool call in the history is the caller's mistake, and is named."""
    assert refused(template("chatml"), [USER, {**CALLING, "tool_calls": [call]}])[0] == param


def test_a_template_of_its_own_for_tools() -> None:
    """Where a model has one template with tools and one without, each is used for its own requests."""
    two = custom(PLAIN, tool_source="{{ tools | tojson }}" + PLAIN)
    assert two.render([USER]) == "[user]Hello <you>"
    assert two.render([USER], tools=[TOOL]) == json.dumps([TOOL]) + "[user]Hello <you>"


# -- options -----------------------------------------------------------------------------------------------------------


def test_options_reach_the_template() -> None:
    """What a caller may tell the template, it is told; the effort none is how to switch thinking off."""
    chatml = template("chatml")
    off = chatml.render([USER]) + "<think>\n\n</think>\n\n"
    assert chatml.render([USER], options={"enable_thinking": False}) == off
    assert chatml.render([USER], options={"reasoning_effort": "none"}) == off
    assert chatml.render([USER], options={"reasoning_effort": "low"}) == chatml.render([USER])
    assert chatml.render([USER], options={"reasoning_effort": "low", "enable_thinking": False}) == off
    knows = custom("{{ reasoning_effort }}" + PLAIN)
    assert knows.render([USER], options={"reasoning_effort": "high"}) == "high[user]Hello <you>"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"enable_thinking": False}, "chat_template_kwargs.enable_thinking"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"bos_token": ""}, "chat_template_kwargs.bos_token"),
        ({"messages": []}, "chat_template_kwargs.messages"),
        ({"tools": []}, "chat_template_kwargs.tools"),
        ({"add_generation_prompt": False}, "chat_template_kwargs.add_generation_prompt"),
        ({"range": 1}, "chat_template_kwargs.range"),
        ({"raise_exception": 1}, "chat_template_kwargs.raise_exception"),
        ({"strftime_now": 1}, "chat_template_kwargs.strftime_now"),
    ],
)
def test_options_that_mean_nothing_or_too_much_are_refused(options: dict[str, Any], param: str) -> None:
    """An option that the template never looks at is not dropped in silence, and none replaces what is ours."""
    assert refused(template("llama3"), [USER], options=options)[0] == param


def test_an_option_of_the_wrong_kind_is_the_callers() -> None:
    """If a template fails only because of what the caller told it, the caller hears of it."""
    greets = custom("{{ (greeting or 'x') + 'y' }}" + PLAIN)
    assert greets.render([USER], options={"greeting": "z"}).startswith("zy")
    assert refused(greets, [USER], options={"greeting": 5})[0] == "chat_template_kwargs"


# -- templates that fail -----------------------------------------------------------------------------------------------


def test_a_template_that_refuses_is_a_clear_sentence_of_ours() -> None:
    """Roles in the wrong order are named as the reason, and the template's own words stay inside."""
    for name in ("mistral", "gemma"):
        param, reason = refused(template(name), [USER, USER])
        assert param == "messages"
        assert reason == "can't be written as this model needs them; it may want its roles in another order"


def test_a_template_that_refuses_these_tools_names_them() -> None:
    """If the messages alone can be written, the tools are what is wrong."""
    picky = custom("{% for t in tools or [] %}{{ t.function.name + t.function.description }}{% endfor %}" + PLAIN)
    assert refused(picky, [USER], tools=[TOOL])[0] == "tools"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}",
        "{{ messages[0].content",
        "{% unknown_tag %}",
        "{{ messages | no_such_filter }}",
        "{% include 'x' %}",
        "a template that says nothing of what the user said",
        "{{ raise_exception('never') }}" + PLAIN,
        "{{ 1 / 0 }}" + PLAIN,
        "#" * (jinja_sandbox.MOST_SOURCE_CHARS + 1) + PLAIN,
    ],
)
def test_a_broken_template_is_found_when_it_is_read(source: str) -> None:
    """The operator hears of a template that can't work, in a sentence, before any customer does."""
    with pytest.raises(BrokenTemplate, match=r"^The chat template .*\.$"):
        custom(source)


def test_a_template_that_breaks_later_is_misconfigured() -> None:
    """A template that fails for every conversation is the operator's trouble, not the caller's."""
    calls = 0

    def clock() -> datetime:
        nonlocal calls
        calls += 1
        if calls > 100:
            raise OSError("the clock has stopped")
        return datetime(2026, 1, 1)

    dated = custom("{{ strftime_now('%Y') }}" + PLAIN, now=clock)
    assert dated.render([USER]) == "2026[user]Hello <you>"
    calls = 100
    with pytest.raises(BackendFailure) as caught:
        dated.render([USER])
    assert caught.value.code is FailureCode.MISCONFIGURED


ESCAPES = [
    "''.__class__.__mro__[1].__subclasses__()",
    "messages.__class__",
    "namespace.__init__.__globals__['os']",
    "raise_exception.__globals__",
    "strftime_now.__globals__",
    "cycler.__init__.__globals__",
    "messages.append(1)",
    "messages[0].update({'role': 'x'})",
    "'{0.__class__}'.format(messages)",
    "''['format_map']({'a': 1}).__class__",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_the_sandbox_holds(escape: str) -> None:
    """A template can neither reach the interpreter nor change what it was given."""
    sandboxed = custom("{% if go %}LEAK{{ " + escape + " }}{% endif %}" + PLAIN, now=datetime.now)
    messages = [dict(USER)]
    try:
        written = sandboxed.render(messages, options={"go": True})
    except Unsupported:
        written = "refused"
    # What may not be looked up is as if it were not there.
    assert written in ("refused", "LEAK[user]Hello <you>")
    assert messages == [USER]


@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(100001) %}{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}{{ messages[0].content * 1000 }}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ [1] * 100000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_without_end_is_stopped(loop: str) -> None:
    """Loops, powers and repetitions that would fill the memory or take for ever end in a refusal."""
    endless = custom("{% if go %}" + loop + "{% endif %}" + PLAIN)
    with pytest.raises(BackendFailure) as caught:
        endless.render([USER], options={"go": True})
    assert caught.value.code in (FailureCode.CONTEXT_LENGTH, FailureCode.INPUT_REFUSED)
    with pytest.raises(BrokenTemplate):
        custom(loop + PLAIN)


def test_a_prompt_that_is_longer_than_any_model_reads_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller hears that the conversation is too long, not that the model is broken."""
    monkeypatch.setattr(jinja_sandbox, "MOST_RENDERED_CHARS", 1000)
    short = custom(PLAIN)
    with pytest.raises(BackendFailure) as caught:
        short.render([{"role": "user", "content": "x" * 1001}])
    assert caught.value.code is FailureCode.CONTEXT_LENGTH


def test_tools_that_are_nested_without_end_are_refused() -> None:
    """JSON nested deeper than can be written is the caller's mistake."""
    deep: dict[str, Any] = {}
    for _ in range(200_000):
        deep = {"a": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    assert refused(template("chatml"), [USER], tools=[tool])[0] == "tools"
    while deep:
        deep = deep.pop("a", {})  # one level at a time: freeing it in one go is deep, too


def test_the_dialect_of_hugging_face() -> None:
    """Blocks leave no lines, loops can be left, the generation tag writes its body, and JSON is for models."""
    source = (
        "{% for m in messages + messages %}\n    {% if loop.index > messages | length %}\n        {% break %}\n"
        "    {% endif %}\n    {% generation %}\n{{ m.content }}\n    {% endgeneration %}\n{% endfor %}\n"
        "{{ documents is none and tools is none }}{{ {'b': '<ü>', 'a': [1, 2]} | tojson }}"
        "{{ {'a': 1} | tojson(indent=2) }}"
        "{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}{{ 'ü' | tojson(ensure_ascii=true) }}"
    )
    assert custom(source).render([USER, USER]) == (
        'Hello <you>\nHello <you>\nTrue{"b": "<ü>", "a": [1, 2]}{\n  "a": 1\n}{"a":2,"b":1}"\\u00fc"'
    )


def test_without_a_clock_there_is_no_date() -> None:
    """A template is a pure function: the date comes from the clock it was given, and from nowhere else."""
    llama = ChatTemplate(FORMATS["llama3"].template, special_tokens=FORMATS["llama3"].special_tokens)
    assert "Today Date: 26 Jul 2024\n" in llama.render([USER])
    assert "Today Date: 04 Mar 2026\n" in template("llama3").render([USER])
