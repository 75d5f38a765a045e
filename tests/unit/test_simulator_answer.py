"""What the simulator answers: deterministic, countable, and cut where it must be."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulator.answer import Choice, answer, cut_at_stop
from backends.simulator.options import SimOptions
from backends.simulator.schema import read_chat, read_completion
from backends.simulator.structured import BadSchema, json_answer
from backends.simulator.tokens import count_tokens, tokenize

CONTEXT = 8192


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "sim-8b", "messages": [{"role": "user", "content": "Hello"}], **fields}


def choices(options: SimOptions | None = None, *, nonce: int = 1, process_seed: int = 0, **fields: Any) -> list[Choice]:
    request = read_chat(chat(**fields), CONTEXT)
    return answer(request, options or SimOptions(), seed=process_seed, nonce=nonce, tokens=40)


def text_of(choice: Choice) -> str:
    return "".join(choice.pieces)


def streamed_text(choice: Choice) -> str:
    """The text as the chunks carry it."""
    deltas = [json.loads(b"{" + fragment + b"}")["delta"] for fragment in choice.fragments]
    return "".join(delta.get("content") or "" for delta in deltas)


@given(st.integers(0, 10_000), st.integers(1, 200), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_completion_tokens_are_the_tokens_of_the_text(nonce: int, limit: int, awkward: bool, ignore_eos: bool) -> None:
    """Recounting the text of any answer gives the number it reports, and never more than the limit."""
    options = SimOptions(vocabulary="unicode" if awkward else "plain")
    (choice,) = choices(options, nonce=nonce, max_tokens=limit, ignore_eos=ignore_eos)
    assert count_tokens(text_of(choice)) == choice.tokens <= limit
    (streamed,) = choices(options, nonce=nonce, max_tokens=limit, ignore_eos=ignore_eos, stream=True)
    assert len(streamed.fragments) == streamed.tokens == choice.tokens
    assert streamed_text(streamed) == text_of(choice)
    assert streamed.finish_reason == choice.finish_reason
    assert choice.finish_reason == ("length" if choice.tokens == limit else "stop")


def test_same_seed_same_answer() -> None:
    """A seed or temperature 0 repeats an answer; without them answers differ."""
    for fields in ({"seed": 7}, {"temperature": 0}):
        assert text_of(choices(nonce=1, **fields)[0]) == text_of(choices(nonce=2, **fields)[0])
    assert text_of(choices(nonce=1)[0]) != text_of(choices(nonce=2)[0])
    assert text_of(choices(nonce=1)[0]) == text_of(choices(nonce=1)[0])
    assert text_of(choices(process_seed=1, temperature=0)[0]) != text_of(choices(process_seed=2, temperature=0)[0])
    assert text_of(choices(temperature=0)[0]) != text_of(choices(temperature=0, model="other")[0])


def test_several_choices_differ_and_are_numbered() -> None:
    """n=3 gives three different answers."""
    several = choices(n=3, seed=1)
    assert [choice.index for choice in several] == [0, 1, 2]
    assert len({text_of(choice) for choice in several}) == 3


def test_limits_and_natural_lengths() -> None:
    """A limit cuts with `length`, an exact natural length stops, a minimum is kept."""
    (cut,) = choices(max_tokens=5, seed=1)
    assert (cut.tokens, cut.finish_reason, cut.ends_with_token) == (5, "length", True)
    (exact,) = choices(SimOptions(tokens=11), seed=1)
    assert (exact.tokens, exact.finish_reason, exact.ends_with_token) == (11, "stop", False)
    (empty,) = choices(SimOptions(tokens=0), seed=1)
    assert (empty.tokens, empty.finish_reason, text_of(empty)) == (0, "stop", "")
    assert choices(min_tokens=300, seed=1)[0].tokens == 300
    assert choices(max_completion_tokens=3, max_tokens=9, seed=1)[0].tokens == 3
    assert choices(SimOptions(text="One two three.", tokens=99), max_tokens=50)[0].tokens == 4


def test_a_stop_string_is_cut_also_across_tokens() -> None:
    """Nothing of the stop string is shown; its tokens were generated and are counted."""
    (choice,) = choices(SimOptions(text="The quick brown fox jumps."), stop=["ck bro"])
    assert text_of(choice) == "The qui"
    assert streamed_text(choice) == "The qui"
    assert (choice.finish_reason, choice.stop_reason, choice.tokens) == ("stop", "ck bro", 3)


@given(st.text(alphabet="ab c", max_size=40), st.lists(st.text(alphabet="abc ", min_size=1, max_size=5), min_size=1))
def test_stops_cut_as_if_the_text_were_searched(text: str, stops: list[str]) -> None:
    """Token by token the same text is shown as by looking for the first token in which a stop string ends."""
    pieces = tokenize(text)
    shown, met = cut_at_stop(pieces, stops)
    if met is None:
        assert "".join(shown) == text
        assert not any(stop in text for stop in stops)
        return
    seen = "".join(pieces[: len(shown)])
    before = "".join(pieces[: len(shown) - 1])
    assert not any(stop in before for stop in stops), "a stop string was overlooked"
    assert "".join(shown) == seen[: min(at for stop in stops if (at := seen.find(stop)) >= 0)]


def test_a_forced_tool_gets_valid_arguments() -> None:
    """The arguments follow the schema, and the streamed deltas put together are the arguments."""
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 3},
            "unit": {"enum": ["c", "f"]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "where": {"$ref": "#/$defs/point"},
        },
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}, "ok": {"type": "boolean"}}}},
    }
    tools = [{"type": "function", "function": {"name": "forecast", "parameters": schema}}]
    for choice_of_tool in ("required", {"type": "function", "function": {"name": "forecast"}}):
        (choice,) = choices(tools=tools, tool_choice=choice_of_tool, seed=3)
        assert (choice.finish_reason, choice.tool_name) == ("tool_calls", "forecast")
        arguments = json.loads(text_of(choice))
        assert set(arguments) == {"city", "days", "unit", "tags", "where"}
        assert 1 <= arguments["days"] <= 3
        assert arguments["unit"] in ("c", "f")
        assert len(arguments["tags"]) == 2
        assert isinstance(arguments["where"]["x"], float)
        deltas = [json.loads(b"{" + fragment + b"}")["delta"]["tool_calls"][0] for fragment in choice.fragments]
        assert deltas[0]["function"]["name"] == "forecast"
        assert all("id" not in delta and "name" not in delta["function"] for delta in deltas[1:])
        assert "".join(delta["function"]["arguments"] for delta in deltas) == text_of(choice)
        assert choice.tokens == 1 + count_tokens(text_of(choice))
    assert choices(tools=tools, seed=3)[0].tool_name is None


def test_a_schema_that_refers_to_itself_ends() -> None:
    """Recursion in a schema gives a finite answer."""
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "list", "schema": schema}}
    (choice,) = choices(response_format=wanted, max_tokens=4000)
    assert "n" in json.loads(text_of(choice))


def test_schemas_that_explode_or_make_no_sense_are_survived() -> None:
    """Ten required self-references end all the same; a minimum that is a word is refused with a sentence."""
    names = [f"p{n}" for n in range(10)]
    explosive = {"type": "object", "required": names, "properties": {name: {"$ref": "#"} for name in names}}
    assert isinstance(json_answer(explosive, 1, ""), dict)
    with pytest.raises(BadSchema):
        json_answer({"type": "integer", "minimum": "low"}, 1, "")


def test_json_mode_gives_json() -> None:
    """response_format json_object is answered with an object."""
    (choice,) = choices(response_format={"type": "json_object"}, seed=1, max_tokens=500)
    assert isinstance(json.loads(text_of(choice)), dict)
    assert count_tokens(text_of(choice)) == choice.tokens


def test_log_probabilities_come_per_token() -> None:
    """One entry per token with as many alternatives as asked for."""
    (choice,) = choices(logprobs=True, top_logprobs=3, max_tokens=6)
    assert [item["token"] for item in choice.logprobs] == list(choice.pieces)
    assert all(len(item["top_logprobs"]) == 3 for item in choice.logprobs)
    assert all(bytes(item["bytes"]).decode() == item["token"] for item in choice.logprobs)


def test_reasoning_comes_first_and_is_counted() -> None:
    """Reasoning tokens are part of the completion tokens and of the limit."""
    (choice,) = choices(SimOptions(reasoning_tokens=5, text="Yes indeed."), max_tokens=50)
    assert choice.tokens == 5 + 3
    deltas = [json.loads(b"{" + fragment + b"}")["delta"] for fragment in choice.fragments]
    assert ["reasoning" in delta for delta in deltas] == [True] * 5 + [False] * 3
    assert choices(SimOptions(reasoning_tokens=50), max_tokens=7)[0].tokens == 7


def test_text_completions_answer_each_prompt() -> None:
    """Two prompts with n=2 give four choices; echo shows the prompt before the answer."""
    body = {"model": "sim-8b", "prompt": ["One", "Two"], "n": 2, "seed": 1, "echo": True}
    found = answer(read_completion(body, CONTEXT), SimOptions(), seed=0, nonce=1, tokens=40)
    assert [choice.index for choice in found] == [0, 1, 2, 3]
    assert [text_of(choice)[:3] for choice in found] == ["One", "One", "Two", "Two"]
    assert all(choice.tokens == 16 for choice in found)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_tool_call_obeys_the_limit(limit: int) -> None:
    """A limit cuts a tool call too, with `length`."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}]
    (choice,) = choices(tools=tools, tool_choice="required", max_tokens=limit)
    assert (choice.tokens, choice.finish_reason) == (limit, "length")
