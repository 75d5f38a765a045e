"""What the mock engine says, encoded beforehand: heads, events and whole answers in vLLM's shape.

Pure. Every event of a stream is an HTTP chunk of its own, as uvicorn sends them. The id and the time of answers are the
same for all: whoever relays an answer has to read them just the same.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

_ID = "chatcmpl-5b1c0a7f9d3e4c2fa86b0e1d2c3f4a5b"
_CREATED = 1_790_000_000
_WORDS = (
    " the", " sea", " is", " wide", " and", " a", " ship", " sails", " on", " it", " to", " an", " island", " that",
    " nobody", " has", " seen", " before", ",", " where", " grey", " birds", " nest", " in", " tall", " trees", " by",
    " clear", " water", ".", " So", " they", " say",
)  # fmt: skip
LAST_CHUNK = b"0\r\n\r\n"


class Answers:
    """All that the engine with one model says.

    Attributes:
        head: of a stream, with its first event (the role).
        events: content, one token each; the n-th of an answer is ``events[n % len(events)]``.
        finish: the event that says why it ended: ``length``.
        done: ``[DONE]`` and the end of the body.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self.head = (
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        ) + self._event({"role": "assistant", "content": ""})
        self.events = [self._event({"content": word}) for word in _WORDS]
        self.finish = self._event({"content": ""}, finish_reason="length")
        self.done = _chunk(b"data: [DONE]\n\n") + LAST_CHUNK
        # A load asks for the same lengths again and again.
        self.at_once = lru_cache(maxsize=128)(self._at_once)
        self.ending = lru_cache(maxsize=4096)(self._ending)
        self.whole = lru_cache(maxsize=4096)(self._whole)
        self._text = lru_cache(maxsize=4096)(lambda tokens: "".join(_WORDS[n % len(_WORDS)] for n in range(tokens)))

    def _ending(self, prompt_tokens: int, tokens: int, *, with_usage: bool) -> bytes:
        """All that follows the content of a stream."""
        if not with_usage:
            return self.finish + self.done
        return self.finish + self._chunk_of({"choices": [], "usage": _usage(prompt_tokens, tokens)}) + self.done

    def _whole(self, prompt_tokens: int, tokens: int) -> bytes:
        """A whole answer with its head."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self._text(tokens)},
            "logprobs": None,
            "finish_reason": "length",
        }
        content = {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": self._model,
            "choices": [choice],
            "usage": _usage(prompt_tokens, tokens),
        }
        return respond(content)

    def models(self) -> bytes:
        """The list of models: one."""
        model = {
            "id": self._model,
            "object": "model",
            "created": _CREATED,
            "owned_by": "mock",
            "max_model_len": 1 << 20,
        }
        return respond({"object": "list", "data": [model]})

    def _at_once(self, prompt_tokens: int, tokens: int, *, with_usage: bool) -> bytes:
        """A whole stream."""
        full, rest = divmod(tokens, len(self.events))
        content = [*self.events * full, *self.events[:rest]]
        return b"".join([self.head, *content, self.ending(prompt_tokens, tokens, with_usage=with_usage)])

    def _event(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk_of({"choices": [choice]})

    def _chunk_of(self, more: dict[str, Any]) -> bytes:
        content = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": self._model, **more}
        return _chunk(b"data: " + _json(content) + b"\n\n")


def respond(content: Any, status: bytes = b"200 OK") -> bytes:
    """A whole response of JSON, with its head."""
    body = _json(content)
    return b"HTTP/1.1 %b\r\nserver: uvicorn\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def _usage(prompt_tokens: int, tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + tokens,
        "completion_tokens": tokens,
        "prompt_tokens_details": None,
    }


def _json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
