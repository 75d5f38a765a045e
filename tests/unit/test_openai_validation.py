"""Validation of request bodies: every wrong field is named, every right one is kept."""

from __future__ import annotations

import io
import json
import wave
from base64 import b64encode
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.request import Kind
from gateway.core.errors import Refused
from gateway.core.openai import MAX_IMAGES, MAX_MESSAGES, MAX_SOUNDS, NO_MEDIA, Ask, read_ask

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> Ask:
    return read_ask(Kind.CHAT, json.dumps({"model": "ep_x", "messages": HELLO, **fields}).encode())


def refused(kind: Kind, body: Any) -> tuple[str, str | None]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refused) as caught:
        read_ask(kind, raw)
    error = caught.value.error
    assert error.status == 400
    assert error.message.endswith(".")
    return error.code, error.param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 3), ("model", ""), ("model", None), ("model", "x" * 300),
        ("messages", []), ("messages", "hi"), ("messages", None), ("messages", HELLO * (MAX_MESSAGES + 1)),
        ("messages", ["hi"]), ("messages", [{"role": "robot", "content": "x"}]), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "user", "content": 5}]), ("messages", [{"role": "user", "content": []}]),
        ("messages", [{"role": "user", "content": [{"type": "video"}]}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": 1}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"format": "wav"}}]}]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("stream", "yes"), ("stream", 1), ("temperature", "hot"), ("temperature", 2.1), ("temperature", -0.1),
        ("temperature", True), ("top_p", 0), ("top_p", 1.01), ("max_tokens", 0), ("max_tokens", 1.5),
        ("max_tokens", "5"), ("max_tokens", True), ("max_completion_tokens", -1), ("n", 0), ("n", 9), ("seed", 1.2),
        ("seed", 2**70), ("stop", 5), ("stop", ["a"] * 5), ("stop", [1]), ("presence_penalty", 3),
        ("frequency_penalty", -3), ("logprobs", "yes"), ("top_logprobs", 21), ("tools", {}), ("tools", [{"type": "x"}]),
        ("tool_choice", 5), ("response_format", "json"), ("stream_options", {"include_usage": True}), ("user", 7),
        ("logit_bias", {"1": 101}), ("reasoning_effort", "extreme"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    """The refusal's code and param name the field at fault."""
    code, param = refused(Kind.CHAT, {"model": "ep_x", "messages": HELLO, field: value})
    assert code == f"{field}_invalid"
    assert param is not None
    assert param.startswith(field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", "x"),
        ("n", [1]),
        ("stream_options", "x"),
        ("stream_options", [1]),
        ("metadata", 5),
        ("encoding_format", []),
    ],
)
@pytest.mark.parametrize("kind", list(Kind))
def test_no_type_of_any_field_breaks_any_route(kind: Kind, field: str, value: Any) -> None:
    """A field that a route does not know is dropped or refused there, whatever it holds."""
    body = {"model": "ep_x", "messages": HELLO, "prompt": "x", "input": "x", "stream": kind is not Kind.EMBEDDING}
    with suppress(Refused):
        assert field not in read_ask(kind, json.dumps({**body, field: value}).encode()).known


def test_embeddings_have_no_completions() -> None:
    """``n`` means nothing there: it is neither passed on nor held for."""
    asked = read_ask(Kind.EMBEDDING, b'{"model": "ep_x", "input": "x", "n": 5}')
    assert asked.completions == 0
    assert "n" not in asked.known


@pytest.mark.parametrize("depth", [300, 1000, 2000])
def test_a_body_too_deep_to_be_passed_on_is_refused(depth: int) -> None:
    """What could not be written for an engine is a 400 before anything is held."""
    raw = b'{"model": "ep_x", "messages": [{"role": "user", "content": "x"}], "x": %b}'
    code, _ = refused(Kind.CHAT, raw % (b"[" * depth + b"]" * depth))
    assert code == "body_invalid"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"null", b"[" * 5000])
def test_what_is_no_json_object_is_told_so(raw: bytes) -> None:
    """Bodies that are no JSON object get one clear sentence."""
    assert refused(Kind.CHAT, raw) == ("body_invalid", None)


def test_fields_are_sorted_into_known_extra_and_ours() -> None:
    """Schema fields are passed on, unknown ones kept apart, engine internals and our own dropped, nulls ignored."""
    ask = chat(temperature=0, top_p=None, guided_regex="a+", chat_template="{{ evil }}", user="u", stop=["x"], n=2)
    assert ask.known == {"messages": HELLO, "temperature": 0, "stop": ["x"], "n": 2}
    assert ask.extra == {"guided_regex": "a+"}
    assert ask.completions == 2


def test_the_newer_name_of_max_tokens_wins() -> None:
    """With both given, max_completion_tokens counts, as in OpenAI's API."""
    assert chat(max_tokens=5).max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_stream_options_are_read() -> None:
    """include_usage is a wish of the client, not something passed on as it is."""
    ask = chat(stream=True, stream_options={"include_usage": True})
    assert ask.stream
    assert ask.include_usage
    assert "stream_options" not in ask.known


def test_images_only_as_data() -> None:
    """An image inside the request is fine; an address that an engine would fetch is not."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert chat(messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]).kind is Kind.CHAT


def sound(seconds: int = 2, audio_format: str = "wav", data: str | None = None) -> dict[str, Any]:
    out = io.BytesIO()
    with wave.open(out, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(1)
        written.setframerate(8_000)
        written.writeframes(bytes(8_000 * seconds - 4_000))
    data = b64encode(out.getvalue()).decode() if data is None else data
    return {"type": "input_audio", "input_audio": {"data": data, "format": audio_format}}


def test_images_and_audio_are_counted() -> None:
    """Every image, and of each piece of audio its started seconds; the text is what is left of the body."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    text = {"type": "text", "text": "?"}
    messages = [{"role": "user", "content": [picture, text, sound()]}, {"role": "user", "content": [sound(3), picture]}]
    media = chat(messages=messages).media
    assert (media.images, media.audio_seconds, media.unknown_audio) == (2, 2 + 3, None)
    assert chat(messages=messages).text_bytes < 500
    assert chat(messages=[{"role": "user", "content": [text]}]).media == NO_MEDIA


def test_audio_without_a_length_is_named() -> None:
    """It may be asked for where audio costs nothing; the first such piece is named, and the others are counted."""
    content = [sound(), sound(data="AAAA"), sound(audio_format="mp3")]
    media = chat(messages=[*HELLO, {"role": "user", "content": content}]).media
    assert (media.audio_seconds, media.unknown_audio) == (2, "messages[1].content[1].input_audio")


@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
def test_a_request_holds_a_bounded_number_of_images_and_sounds(kind: str) -> None:
    """One more than the bound is refused, in one message or in many."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    part, most = (picture, MAX_IMAGES) if kind == "image_url" else (sound(1), MAX_SOUNDS)
    assert chat(messages=[{"role": "user", "content": [part] * most}]).media.size_bytes
    with pytest.raises(Refused) as caught:
        chat(messages=[{"role": "user", "content": [part] * most}, {"role": "user", "content": [part]}])
    assert caught.value.error.param == "messages"


def test_a_tool_conversation_is_accepted() -> None:
    """An assistant's call without content and the tool's answer are ordinary messages."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert chat(messages=messages, tools=[tool], tool_choice="auto").known["tools"] == [tool]


def test_legacy_completions_count_their_prompts() -> None:
    """n answers for each of several prompts are all held for; token ids are one prompt."""

    def ask(**fields: Any) -> Ask:
        return read_ask(Kind.COMPLETION, json.dumps({"model": "m", **fields}).encode())

    assert ask(prompt="a").completions == 1
    assert ask(prompt=["a", "b", "c"], n=2).completions == 6
    assert ask(prompt=[1, 2, 3]).completions == 1
    assert ask(prompt=[[1], [2]]).completions == 2
    assert ask(prompt="a").max_tokens == 16
    for bad in (None, "", [], [[]], ["a", [1]], [True], {}):
        assert refused(Kind.COMPLETION, {"model": "m", "prompt": bad})[0] == "prompt_invalid"


def test_embeddings_have_inputs_and_no_completions() -> None:
    """Embeddings take texts or token ids, have nothing to complete and cannot be streamed."""
    ask = read_ask(Kind.EMBEDDING, b'{"model":"m","input":["a","b"],"encoding_format":"base64"}')
    assert (ask.completions, ask.prompts, ask.max_tokens) == (0, 2, None)
    assert refused(Kind.EMBEDDING, {"model": "m", "input": "a", "stream": True})[0] == "stream_invalid"
    assert (
        refused(Kind.EMBEDDING, {"model": "m", "input": "a", "encoding_format": "hex"})[0] == "encoding_format_invalid"
    )


@given(st.text(min_size=1, max_size=300))
def test_the_prompt_bound_covers_any_text(text: str) -> None:
    """No tokenizer makes more tokens than bytes, so the bound is never below the text's UTF-8 size."""
    for raw in (json.dumps(text).encode(), json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")):
        try:
            ask = read_ask(Kind.CHAT, b'{"model":"m","messages":[{"role":"user","content":' + raw + b"}]}")
        except Refused:
            continue  # lone surrogates are no UTF-8
        assert ask.prompt_tokens_bound >= len(text.encode("utf-8"))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "messages",
        "model",
        "stream",
        "n",
        "stop",
        "tools",
        "stream_options",
        "prompt",
        "input",
        "max_tokens",
        "logit_bias",
    ]
)


@given(st.sampled_from(list(Kind)), st.dictionaries(FIELDS, JSON_VALUES, max_size=6))
def test_any_json_is_accepted_or_refused_with_a_sentence(kind: Kind, body: dict[str, Any]) -> None:
    """Whatever is sent, the answer is an Ask or a 400; never another exception."""
    try:
        read_ask(kind, json.dumps(body).encode())
    except Refused as refusal:
        assert refusal.error.status == 400  # noqa: PT017
