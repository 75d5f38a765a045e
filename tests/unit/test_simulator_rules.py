"""The simulator's small rules: what it refuses, which fault plan takes which request, when things are due."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from backends.simulator.embedding import embed
from backends.simulator.faults import FaultBook
from backends.simulator.options import BadOption, Fault, SimOptions, parse_options
from backends.simulator.refusal import Refusal
from backends.simulator.schema import read_chat, read_completion, read_embedding, read_json
from backends.simulator.settings import BadSetting, SimulatorSettings
from backends.simulator.tokens import IMAGE_TOKENS
from backends.simulator.wheel import Wheel

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": {}}, "tools"),
        ({"tools": [{}], "tool_choice": {"function": {"name": "f"}}}, "tool_choice"),
        ({"max_tokens": 9000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, "input_tokens"),
    ],
)
def test_wrong_chat_requests_are_refused_with_the_field(fields: dict[str, Any], param: str) -> None:
    """Each wrong field gets a 400 that names it."""
    with pytest.raises(Refusal) as caught:
        read_chat({"model": "sim-8b", "messages": MESSAGES, **fields}, 8192)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert b'"code":400' in caught.value.body()


def test_too_long_a_prompt_is_refused_in_the_words_of_vllm() -> None:
    """Clients look for "context length"."""
    for fields in ({"max_tokens": 9000}, {"messages": [{"role": "user", "content": "word " * 9000}]}):
        with pytest.raises(Refusal, match="maximum context length is 8192 tokens"):
            read_chat({"model": "m", "messages": MESSAGES, **fields}, 8192)


def test_prompts_come_in_all_their_shapes() -> None:
    """Parts, images, token ids and several prompts are counted."""
    text = read_chat({"model": "m", "messages": MESSAGES}, 8192).prompt_tokens
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}, picture]}]
    assert read_chat({"model": "m", "messages": parts}, 8192).prompt_tokens == text + IMAGE_TOKENS
    assert read_completion({"model": "m", "prompt": [1, 22, 333]}, 8192).prompt_tokens == 3
    assert read_completion({"model": "m", "prompt": [[1, 2], [3]]}, 8192).prompt_tokens == 3
    assert read_completion({"model": "m", "prompt": ["a b", "c"]}, 8192).prompt_tokens == 3
    assert read_embedding({"model": "m", "input": "a b c"}, 8192).prompt_tokens == 3
    for wrong in (None, [], [[]], {}, [1, "a"]):
        with pytest.raises(Refusal):
            read_embedding({"model": "m", "input": wrong}, 8192)


def test_continuous_usage_needs_include_usage() -> None:
    """As in vLLM, continuous_usage_stats alone does nothing."""
    for options, expected in (
        ({"continuous_usage_stats": True}, (False, False)),
        ({"include_usage": True}, (True, False)),
        ({"include_usage": True, "continuous_usage_stats": True}, (True, True)),
    ):
        body = {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": options}
        request = read_chat(body, 8192)
        assert (request.include_usage, request.continuous_usage) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff", b'{"a":NaN}'])
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    """Any other body is a 400."""
    with pytest.raises(Refusal):
        read_json(body)


@pytest.mark.parametrize(
    "wrong",
    [[], {"fail": "nothing_known"}, {"tokens": -1}, {"tokens": 1.5}, {"tokens": True}, {"ttft_ms": "1"}, {"what": 1},
     {"vocabulary": "klingon"}, {"text": 1}, {"tool_call": 1}],
)  # fmt: skip
def test_wrong_sim_options_are_refused(wrong: Any) -> None:
    """A test that misspells an option must not pass by accident."""
    with pytest.raises(BadOption):
        parse_options(wrong)


def test_options_lie_over_each_other() -> None:
    """What the request says wins over the plan, field by field."""
    mine = parse_options({"tokens": 5, "fail": 429})
    merged = mine.over(SimOptions(tokens=9, itl_ms=1.0))
    assert merged == SimOptions(tokens=5, fail=Fault.RATE_LIMITED, itl_ms=1.0)


def test_a_plan_counts_skips_and_matches() -> None:
    """Plans take the requests they describe, as often as they say, in order."""
    book = FaultBook(seed=1)
    book.add([{"fail": "500", "times": 2, "skip": 1, "model": "a", "stream": True}, {"fail": "503", "route": "health"}])
    taken = [book.take("chat", model="a", stream=True) for _ in range(5)]
    assert [options and options.fail for options in taken] == [None, Fault.SERVER_ERROR, Fault.SERVER_ERROR, None, None]
    assert book.take("chat", model="b", stream=True) is None
    assert book.take("embedding") is None
    health = book.take("health")
    assert health is not None
    assert health.fail is Fault.OVERLOADED
    assert [plan["fired"] for plan in book.as_json()] == [2, 1]
    book.clear()
    assert book.take("health") is None


def test_a_plan_with_a_probability_strikes_about_as_often() -> None:
    """Probability 0.3 takes about three in ten; the dice are seeded, so this is the same each time."""
    book = FaultBook(seed=5)
    book.add({"fail": "500", "probability": 0.3})
    fired = sum(book.take("chat") is not None for _ in range(1000))
    assert 250 < fired < 350


@pytest.mark.parametrize(
    "wrong",
    [3, {"times": -1}, {"times": True}, {"probability": 2}, {"route": "kitchen"}, {"model": 1}, {"stream": 1},
     {"fail": "x"}, [{"fail": "500"}, {"fail": "x"}], {"route": []}],
)  # fmt: skip
def test_wrong_plans_are_refused_whole(wrong: Any) -> None:
    """No plan of a wrong posting is taken."""
    book = FaultBook(seed=1)
    with pytest.raises(BadOption):
        book.add(wrong)
    assert book.as_json() == []


@pytest.mark.parametrize(
    "wrong",
    [{"models": ()}, {"models": ("a", "a")}, {"port": 70000}, {"ttft_ms": -1.0}, {"itl_ms": float("nan")},
     {"tokens": 0}, {"speed": 0.0}, {"context_tokens": 1}, {"overload_status": 404}, {"dimensions": 0}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """The sentence names the flag."""
    with pytest.raises(BadSetting, match=r"^--[a-z-]+ .+\.$"):
        SimulatorSettings(**wrong)


def test_embeddings_of_equal_texts_are_equal_and_of_like_texts_near() -> None:
    """Vectors have length 1, and shared words bring texts together."""
    one, like, other = (embed(text, 64) for text in ("the red ship sails", "the red ship waits", "quantum soup"))
    near = sum(a * b for a, b in zip(one, like, strict=True))
    far = sum(a * b for a, b in zip(one, other, strict=True))
    assert abs(sum(part * part for part in one) - 1) < 1e-9
    assert near > 0.5 > far


class _Recorder:
    def __init__(self, name: str, log: list[str], wheel: Wheel, again: int = 0) -> None:
        self.name, self.log, self.wheel, self.again = name, log, wheel, again

    def wake(self, now_s: float) -> None:
        self.log.append(self.name)
        if self.name == "broken":
            raise ValueError("broken")
        if self.again:
            self.again -= 1
            self.wheel.at(0.0, self)


class _SteppedLoop:
    """What the wheel asks of an event loop, on a clock that only the test moves: no pause of the machine counts."""

    def __init__(self) -> None:
        self.clock_s = 100.0
        self.problems: list[dict[str, Any]] = []
        self._soon: list[tuple[float, Callable[[], None], asyncio.Handle]] = []

    def time(self) -> float:
        return self.clock_s

    def call_later(self, delay_s: float, work: Callable[[], None]) -> asyncio.Handle:
        handle = asyncio.Handle(work, (), asyncio.get_running_loop())
        self._soon.append((self.clock_s + delay_s, work, handle))
        return handle

    def call_soon(self, work: Callable[[], None]) -> asyncio.Handle:
        return self.call_later(0.0, work)

    def call_exception_handler(self, problem: dict[str, Any]) -> None:
        self.problems.append(problem)

    def turn(self) -> None:
        """One pass: what is due now."""
        due = [work for at_s, work, handle in self._soon if at_s <= self.clock_s and not handle.cancelled()]
        self._soon = [entry for entry in self._soon if entry[0] > self.clock_s]
        for work in due:
            work()


async def test_the_wheel_wakes_in_order_and_lets_others_go_first() -> None:
    """Earlier slots come first; a thing due in the past again waits a pass; an error stops nobody else."""
    loop, log = _SteppedLoop(), list[str]()
    wheel = Wheel(cast(asyncio.AbstractEventLoop, loop))
    now_s = wheel.now_s()
    wheel.at(now_s + 0.020, _Recorder("late", log, wheel))
    wheel.at(now_s + 0.005, _Recorder("broken", log, wheel))
    wheel.at(now_s + 0.005, _Recorder("early", log, wheel))
    wheel.at(now_s - 1, _Recorder("past", log, wheel, again=2))
    for expected in (["past"], ["past"] * 2, ["past"] * 3, ["past"] * 3):
        loop.turn()
        assert log == expected
    loop.clock_s += 0.0061
    loop.turn()
    assert log[3:] == ["broken", "early"]
    loop.clock_s += 1
    loop.turn()
    assert log[5:] == ["late"]
    assert [str(problem["exception"]) for problem in loop.problems] == ["broken"]
