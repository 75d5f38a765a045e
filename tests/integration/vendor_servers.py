"""Servers in the form of three vendors' chat APIs, as strict as those: for tests of who asks them.

A request that a vendor would not take gets the refusal that the vendor would give, in its words. What happens to those
that it takes is a script of the test: a status, a delay, an answer that breaks off.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

KEY: Final = "sk-the-operators-key"
WORDS: Final = "words of the vendor"
"""Stand in every refusal, and nowhere else."""
PROMPT, COMPLETION = 40, 25
_MODEL: Final = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(slots=True)
class Turn:
    """What happens to one request.

    Attributes:
        status, headers: of the answer.
        body: instead of the one that belongs to the status.
        delay_s: before the answer.
        cut_at: so many bytes of the answer are sent, and then nothing ever again.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay_s: float = 0.0
    cut_at: int | None = None


class VendorServer:
    """One server for all three.

    Attributes:
        turns: what happens to the next requests, in their order; afterwards all is well.
        bodies, times: of all requests.
        open, most_open: requests at work, now and at most.
        given_up: how many clients left before their answer.
    """

    def __init__(self, *, without_temperature: Sequence[str] = ()) -> None:
        self.turns: list[Turn] = []
        self.bodies: list[Any] = []
        self.times: list[float] = []
        self.open = 0
        self.most_open = 0
        self.given_up = 0
        self.url = ""
        self._without_temperature = without_temperature

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[VendorServer]:
        """Serve on a port of the system's choice. ``options``: of `aiohttp.web.TCPSite`."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._openai)
        app.router.add_post("/v1/messages", self._anthropic)
        app.router.add_post("/v1beta/models/{call}", self._google)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", options.pop("port", 0), **options).start()
            scheme = "https" if options.get("ssl_context") else "http"
            self.url = f"{scheme}://localhost:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    # -- the three ---------------------------------------------------------------------------------------------------

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        body = await self._take(request)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return _said(401, _openai_error("invalid_request_error", "invalid_api_key"))
        if set(body) - {"model", "messages", "max_completion_tokens", "temperature"} or "model" not in body:
            return _said(400, _openai_error("invalid_request_error", None))
        if "temperature" in body and body["model"] in self._without_temperature:
            return _said(400, _openai_error("invalid_request_error", "unsupported_value", "temperature"))
        for message in body["messages"]:
            assert message["role"] in ("system", "user", "assistant")
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "Bonjour"}, "finish_reason": "stop"},
            ],
            "usage": {"prompt_tokens": PROMPT, "completion_tokens": COMPLETION, "total_tokens": PROMPT + COMPLETION},
        }
        return await self._play(request, answer, lambda status: _openai_error("server_error", f"e{status}"))

    async def _anthropic(self, request: web.Request) -> web.StreamResponse:
        body = await self._take(request)
        if "anthropic-version" not in request.headers:
            return _said(400, _anthropic_error("invalid_request_error"))
        if request.headers.get("x-api-key") != KEY:
            return _said(401, _anthropic_error("authentication_error"))
        if set(body) - {"model", "messages", "max_tokens", "temperature", "system"} or "max_tokens" not in body:
            return _said(400, _anthropic_error("invalid_request_error"))
        if "temperature" in body and body["model"] in self._without_temperature:
            return _said(400, _anthropic_error("invalid_request_error", "`temperature` is deprecated for this model."))
        for message in body["messages"]:
            assert message["role"] in ("user", "assistant")
        answer = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "Bonjour"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": PROMPT - 10, "cache_read_input_tokens": 10, "output_tokens": COMPLETION},
        }
        kinds = {429: "rate_limit_error", 529: "overloaded_error"}
        return await self._play(request, answer, lambda status: _anthropic_error(kinds.get(status, "api_error")))

    async def _google(self, request: web.Request) -> web.StreamResponse:
        body = await self._take(request)
        assert "key" not in request.query, "a key in an address stands in the logs of everyone on the way"
        model, _, verb = request.match_info["call"].partition(":")
        if verb != "generateContent" or _MODEL.fullmatch(model) is None:
            return _said(404, _google_error(404, "NOT_FOUND"))
        if request.headers.get("x-goog-api-key") != KEY:
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            return _said(400, _google_error(400, "INVALID_ARGUMENT", info))
        if set(body) - {"contents", "generationConfig", "systemInstruction"}:
            return _said(400, _google_error(400, "INVALID_ARGUMENT"))
        if "temperature" in body["generationConfig"] and model in self._without_temperature:
            return _said(400, _google_error(400, "INVALID_ARGUMENT", message="temperature is not supported"))
        for content in body["contents"]:
            assert content["role"] in ("user", "model")
        answer = {
            "candidates": [
                {"content": {"role": "model", "parts": [{"text": "Bonjour"}]}, "finishReason": "STOP", "index": 0}
            ],
            "usageMetadata": {
                "promptTokenCount": PROMPT,
                "candidatesTokenCount": COMPLETION - 20,
                "thoughtsTokenCount": 20,
                "totalTokenCount": PROMPT + COMPLETION,
            },
        }
        return await self._play(request, answer, lambda status: _google_error(status, "UNAVAILABLE"))

    # -- what happens ------------------------------------------------------------------------------------------------

    async def _take(self, request: web.Request) -> Any:
        self.times.append(time.monotonic())
        assert request.content_type == "application/json"
        body = await request.json()
        self.bodies.append(body)
        return body

    async def _play(self, request: web.Request, answer: Any, error: Any) -> web.StreamResponse:
        turn = self.turns.pop(0) if self.turns else Turn()
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(turn.delay_s)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.open -= 1
        whole = _said(turn.status, answer if turn.status == 200 else error(turn.status))
        whole.headers.update(turn.headers)
        if turn.body is not None:
            whole.body = turn.body
        if turn.cut_at is None:
            return whole
        assert isinstance(whole.body, bytes)
        cut = web.StreamResponse(status=whole.status, headers={"Content-Type": "application/json"})
        cut.content_length = len(whole.body)
        await cut.prepare(request)
        await cut.write(whole.body[: turn.cut_at])
        assert request.transport is not None
        request.transport.abort() if not turn.cut_at else request.transport.close()
        return cut


def _said(status: int, body: Any) -> web.Response:
    return web.json_response(body, status=status)


def _openai_error(kind: str, code: str | None, param: str | None = None) -> Any:
    return {"error": {"message": WORDS, "type": kind, "param": param, "code": code}}


def _anthropic_error(kind: str, message: str = WORDS) -> Any:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def _google_error(status: int, name: str, *details: Any, message: str = WORDS) -> Any:
    return {"error": {"code": status, "message": message, "status": name, "details": list(details)}}
