"""What goes to vendors and comes from them, against bodies in the form that each vendor documents."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.vendors.conversation import InputRefused, read_conversation
from gateway.control.vendors.port import AnswerInvalid, CallSettings, FailureKind, VendorAnswer, endpoint
from gateway.control.vendors.retries import FIRST_PAUSE_S, LONGEST_PAUSE_S, pause_s, retry_after_s
from gateway.control.vendors.wire import VENDORS

NOW = "Wed, 21 Oct 2026 07:28:00 GMT"
PNG, PDF = "iVBORw0KGgo=", "JVBERi0xLjc="
ASKED = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "high"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
            {"type": "text", "text": "What is this?"},
        ],
    },
    {"role": "assistant", "content": "A picture."},
    {"role": "developer", "content": [{"type": "text", "text": "In French."}]},
    {"role": "user", "content": "And the other?"},
]


def written(vendor: str, messages: list[dict[str, Any]], **settings: Any) -> tuple[str, dict[str, str], Any]:
    request = VENDORS[vendor].write(
        "the-key", "model-1", read_conversation(messages), CallSettings(**{"most_tokens": 512, **settings})
    )
    assert "the-key" not in repr(request)
    return request.path, dict(request.headers), request.body


def test_openai_is_asked_in_its_form() -> None:
    """Instructions as system messages, documents as named files, the newer bound of tokens."""
    path, headers, body = written("openai", ASKED)
    assert (path, headers) == ("/v1/chat/completions", {"Authorization": "Bearer the-key"})
    assert body == {
        "model": "model-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "In French."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                    {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PDF}"}},
                    {"type": "text", "text": "What is this?"},
                ],
            },
            {"role": "assistant", "content": "A picture."},
            {"role": "user", "content": "And the other?"},
        ],
        "max_completion_tokens": 512,
        "temperature": 0.0,
    }


def test_anthropic_is_asked_in_its_form() -> None:
    """Instructions apart, images and documents as sources, the version of the API."""
    path, headers, body = written("anthropic", ASKED, temperature=None)
    assert (path, headers) == ("/v1/messages", {"x-api-key": "the-key", "anthropic-version": "2023-06-01"})
    assert body == {
        "model": "model-1",
        "max_tokens": 512,
        "system": "Be brief.\n\nIn French.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                    {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
                    {"type": "text", "text": "What is this?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A picture."}]},
            {"role": "user", "content": [{"type": "text", "text": "And the other?"}]},
        ],
    }
    assert written("anthropic", ASKED[-1:])[2] == {
        "model": "model-1",
        "max_tokens": 512,
        "temperature": 0.0,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "And the other?"}]}],
    }


def test_google_is_asked_in_its_form() -> None:
    """The model in the path, the key in a header, the assistant as ``model``."""
    path, headers, body = written("google", ASKED)
    assert (path, headers) == ("/v1beta/models/model-1:generateContent", {"x-goog-api-key": "the-key"})
    assert body == {
        "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "In French."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"inlineData": {"mimeType": "image/png", "data": PNG}},
                    {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
                    {"text": "What is this?"},
                ],
            },
            {"role": "model", "parts": [{"text": "A picture."}]},
            {"role": "user", "parts": [{"text": "And the other?"}]},
        ],
        "generationConfig": {"maxOutputTokens": 512, "candidateCount": 1, "temperature": 0.0},
    }
    assert "temperature" not in written("google", ASKED, temperature=None)[2]["generationConfig"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "system", "content": "alone"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": None}],
        [{"role": "user"}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
        # A vendor would fetch these for us.
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"data:text/html;base64,{PNG}"}}]}],
        [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}],
        [{"role": "system", "content": ASKED[1]["content"]}, {"role": "user", "content": "x"}],
    ],
)
def test_what_cannot_be_asked_is_refused_here(messages: list[dict[str, Any]]) -> None:
    """Before any vendor sees it."""
    with pytest.raises(InputRefused):
        read_conversation(messages)


OPENAI_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "model-1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Bonjour", "refusal": None}, "finish_reason": "stop"}
    ],
    "usage": {
        "prompt_tokens": 40,
        "completion_tokens": 25,
        "total_tokens": 65,
        "prompt_tokens_details": {"cached_tokens": 32},
        "completion_tokens_details": {"reasoning_tokens": 20},
    },
}
ANTHROPIC_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "text", "text": "Bon"},
        {"type": "text", "text": "jour"},
    ],
    "stop_reason": "max_tokens",
    "usage": {
        "input_tokens": 8,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 30,
        "output_tokens": 25,
    },
}
GOOGLE_ANSWER = {
    "candidates": [
        {
            "content": {
                "role": "model",
                "parts": [{"text": "Hm.", "thought": True}, {"text": "Bon"}, {"text": "jour"}],
            },
            "finishReason": "STOP",
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 40,
        "cachedContentTokenCount": 32,
        "candidatesTokenCount": 5,
        "thoughtsTokenCount": 20,
        "totalTokenCount": 65,
    },
}
ANSWERS = {"openai": OPENAI_ANSWER, "anthropic": ANTHROPIC_ANSWER, "google": GOOGLE_ANSWER}


@pytest.mark.parametrize("vendor", ANSWERS)
def test_an_answer_is_read_with_all_that_is_billed(vendor: str) -> None:
    """Thoughts are no text and are billed; what came from a cache is input like any other."""
    said = VENDORS[vendor].read(ANSWERS[vendor])
    assert said == VendorAnswer("Bonjour", 40, 25, "length" if vendor == "anthropic" else "stop")
    assert "Bonjour" not in repr(said)


def without(body: Any, *path: str | int, value: Any = None) -> Any:
    """A copy without what is at a path, or with another value there."""
    if len(path) == 1:
        copy = dict(body)
        del copy[path[0]]
        return copy if value is None else copy | {path[0]: value}
    if isinstance(body, list):
        return [without(one, *path[1:], value=value) if i == path[0] else one for i, one in enumerate(body)]
    return {key: without(one, *path[1:], value=value) if key == path[0] else one for key, one in body.items()}


USAGE = {
    "openai": ("usage", "prompt_tokens", "completion_tokens"),
    "anthropic": ("usage", "input_tokens", "output_tokens"),
    "google": ("usageMetadata", "promptTokenCount", "candidatesTokenCount"),
}


@pytest.mark.parametrize("vendor", ANSWERS)
def test_an_answer_without_its_usage_is_none(vendor: str) -> None:
    """No count is guessed, and none that can't be."""
    name, prompt, completion = USAGE[vendor]
    whole = ANSWERS[vendor]
    broken = [without(whole, name), without(whole, name, value=[]), without(whole, name, value=7)]
    broken += [without(whole, name, count) for count in (prompt, completion)]
    broken += [
        without(whole, name, count, value=value)
        for count in (prompt, completion)
        for value in (-1, 1.5, True, "40", 1 << 31)
    ]
    for body in (*broken, [], {}, "x", 7, None, {"error": {"message": "x"}}):
        with pytest.raises(AnswerInvalid):
            VENDORS[vendor].read(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(body: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place inside."""
    inside = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    found = [path]
    for key, value in inside:
        found += places(value, (*path, key))
    return found


def put(body: Any, path: tuple[str | int, ...], value: Any) -> Any:
    if not path:
        return value
    if isinstance(body, dict):
        return {key: put(one, path[1:], value) if key == path[0] else one for key, one in body.items()}
    return [put(one, path[1:], value) if i == path[0] else one for i, one in enumerate(body)]


@given(data=st.data(), vendor=st.sampled_from(sorted(ANSWERS)), value=json_values)
def test_any_json_is_an_answer_or_invalid(data: st.DataObject, vendor: str, value: Any) -> None:
    """Whatever stands anywhere in an answer: it is read with a text and counts, or refused; nothing else is raised."""
    place = data.draw(st.sampled_from(places(ANSWERS[vendor])))
    body = put(ANSWERS[vendor], place, value)
    try:
        said = VENDORS[vendor].read(body)
    except AnswerInvalid:
        return
    assert isinstance(said.text, str)
    assert min(said.prompt_tokens, said.completion_tokens) >= 0


def test_answers_without_words() -> None:
    """A refusal, a blocked prompt, an answer that was all thoughts: answers, and billed."""
    refused = put(OPENAI_ANSWER, ("choices", 0, "message"), {"role": "assistant", "content": None, "refusal": "No."})
    assert VENDORS["openai"].read(refused).text == "No."
    silent = put(OPENAI_ANSWER, ("choices", 0), {"message": {"content": None}, "finish_reason": "length"})
    assert VENDORS["openai"].read(silent) == VendorAnswer("", 40, 25, "length")
    stopped = ANTHROPIC_ANSWER | {"content": [], "stop_reason": "refusal"}
    assert VENDORS["anthropic"].read(stopped) == VendorAnswer("", 40, 25, "content_filter")
    blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 40}}
    assert VENDORS["google"].read(blocked) == VendorAnswer("", 40, 0, "content_filter")
    thoughts = {
        "candidates": [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}],
        "usageMetadata": {"promptTokenCount": 40, "thoughtsTokenCount": 25},
    }
    assert VENDORS["google"].read(thoughts) == VendorAnswer("", 40, 25, "length")
    with pytest.raises(AnswerInvalid):
        VENDORS["google"].read({"usageMetadata": {"promptTokenCount": 40}})


def openai_error(code: str | None, kind: str, message: str = "Words.", param: str | None = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic_error(kind: str, message: str = "Words.") -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google_error(status: str, *details: Any, message: str = "Words.") -> Any:
    return {"error": {"code": 0, "message": message, "status": status, "details": list(details)}}


KEY_INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}


@pytest.mark.parametrize(
    ("vendor", "status", "body", "kind"),
    [
        ("openai", 401, openai_error("invalid_api_key", "invalid_request_error"), FailureKind.SHUT_OUT),
        ("openai", 404, openai_error("model_not_found", "invalid_request_error"), FailureKind.REFUSED),
        ("openai", 400, openai_error("context_length_exceeded", "invalid_request_error"), FailureKind.REFUSED),
        ("openai", 429, openai_error("rate_limit_exceeded", "requests"), FailureKind.BUSY),
        ("openai", 429, openai_error("insufficient_quota", "insufficient_quota"), FailureKind.SHUT_OUT),
        ("openai", 500, openai_error(None, "server_error"), FailureKind.DOWN),
        ("openai", 503, "The engine is overloaded", FailureKind.BUSY),
        ("openai", 307, None, FailureKind.SHUT_OUT),
        ("anthropic", 401, anthropic_error("authentication_error"), FailureKind.SHUT_OUT),
        ("anthropic", 402, anthropic_error("billing_error"), FailureKind.SHUT_OUT),
        ("anthropic", 403, anthropic_error("permission_error"), FailureKind.SHUT_OUT),
        ("anthropic", 400, anthropic_error("invalid_request_error"), FailureKind.REFUSED),
        (
            "anthropic",
            400,
            anthropic_error("invalid_request_error", "Your credit balance is too low."),
            FailureKind.SHUT_OUT,
        ),
        ("anthropic", 413, anthropic_error("request_too_large"), FailureKind.REFUSED),
        ("anthropic", 429, anthropic_error("rate_limit_error"), FailureKind.BUSY),
        ("anthropic", 500, anthropic_error("api_error"), FailureKind.DOWN),
        ("anthropic", 529, anthropic_error("overloaded_error"), FailureKind.BUSY),
        ("google", 400, google_error("INVALID_ARGUMENT"), FailureKind.REFUSED),
        ("google", 400, google_error("INVALID_ARGUMENT", KEY_INVALID), FailureKind.SHUT_OUT),
        ("google", 400, google_error("FAILED_PRECONDITION"), FailureKind.SHUT_OUT),
        ("google", 403, google_error("PERMISSION_DENIED"), FailureKind.SHUT_OUT),
        ("google", 404, google_error("NOT_FOUND"), FailureKind.REFUSED),
        ("google", 429, google_error("RESOURCE_EXHAUSTED", {"@type": "x"}, RETRY_INFO), FailureKind.BUSY),
        ("google", 503, google_error("UNAVAILABLE"), FailureKind.BUSY),
        ("google", 504, google_error("DEADLINE_EXCEEDED"), FailureKind.DOWN),
    ],
)
def test_a_refusal_is_read(vendor: str, status: int, body: Any, kind: FailureKind) -> None:
    """Whose fault it is and whether waiting helps."""
    refusal = VENDORS[vendor].read_refusal(status, body)
    assert (refusal.kind, refusal.names_temperature) == (kind, False)
    assert refusal.after_s == (34.5 if "retryDelay" in repr(body) else None)


ERRORS = {
    "openai": openai_error("insufficient_quota", "insufficient_quota", param="x"),
    "anthropic": anthropic_error("overloaded_error"),
    "google": google_error("RESOURCE_EXHAUSTED", KEY_INVALID, RETRY_INFO),
}


@given(
    data=st.data(),
    vendor=st.sampled_from(sorted(ERRORS)),
    value=json_values,
    status=st.sampled_from([302, 400, 429, 500]),
)
def test_any_json_is_a_refusal(data: st.DataObject, vendor: str, value: Any, status: int) -> None:
    """Whatever stands anywhere in it, or nothing."""
    place = data.draw(st.sampled_from(places(ERRORS[vendor])))
    VENDORS["openai"].read_refusal(429, openai_error(value, value, param=value))
    after_s = VENDORS[vendor].read_refusal(status, put(ERRORS[vendor], place, value)).after_s
    assert after_s is None or after_s >= 0


@pytest.mark.parametrize(
    ("vendor", "body"),
    [
        ("openai", openai_error("unsupported_value", "invalid_request_error", param="temperature")),
        ("openai", openai_error(None, "invalid_request_error", "Unsupported parameter: 'temperature'.")),
        ("anthropic", anthropic_error("invalid_request_error", "`temperature` is deprecated for this model.")),
        ("google", google_error("INVALID_ARGUMENT", message="Temperature is not supported.")),
    ],
)
def test_a_model_without_temperature_is_known_by_its_refusal(vendor: str, body: Any) -> None:
    """So that it can be asked without one. A server that is down says nothing about that."""
    assert VENDORS[vendor].read_refusal(400, body).names_temperature
    assert not VENDORS[vendor].read_refusal(500, body).names_temperature


@pytest.mark.parametrize(
    ("root", "path", "found"),
    [
        ("https://api.openai.com", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1/", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://a.example/x/openai/v1", "/v1/messages", "https://a.example/x/openai/v1/messages"),
        ("https://a.example/x", "/v1/messages", "https://a.example/x/v1/messages"),
        ("https://g.example/v1beta", "/v1beta/models/m:generateContent", "https://g.example/v1beta/models/m:generateContent"),
        ("https://g.example/v1", "/v1beta/models/m:x", "https://g.example/v1/v1beta/models/m:x"),
    ],
)  # fmt: skip
def test_an_apis_root_may_end_in_its_version(root: str, path: str, found: str) -> None:
    """As operators have it in their environment for the vendor's own client."""
    assert endpoint(root, path) == found


@pytest.mark.parametrize(
    ("after", "answered", "seconds"),
    [
        (None, None, None),
        ("7", None, 7.0),
        ("0.25", None, 0.25),
        ("0", NOW, 0.0),
        ("Wed, 21 Oct 2026 07:28:09 GMT", NOW, 9.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", NOW, 0.0),
        ("Wed, 21 Oct 2026 07:28:09 GMT", None, None),
        ("Wed, 21 Oct 2026 07:28:09 GMT", "soon", None),
        *((word, NOW, None) for word in ("", "-1", "soon", "1e3", "nan", "inf", "١", "9" * 400, "Wed, 99 Oct 2026")),
    ],
)  # fmt: skip
def test_when_to_come_again(after: str | None, answered: str | None, seconds: float | None) -> None:
    """Seconds or a date, which is counted from the vendor's own clock."""
    assert retry_after_s(after, answered=answered) == seconds


@given(attempt=st.integers(0, 100), after_s=st.none() | st.floats(0, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_pauses(attempt: int, after_s: float | None, chance: float) -> None:
    """Never earlier than the vendor said; without its word, longer each time up to a bound, and never none."""
    pause = pause_s(attempt, after_s, chance=chance)
    if after_s is not None:
        assert after_s <= pause <= after_s + max(FIRST_PAUSE_S, after_s) / 4
        return
    assert FIRST_PAUSE_S / 2 <= pause <= LONGEST_PAUSE_S
    assert pause <= pause_s(attempt + 1, None, chance=chance)
