"""Models for tests of evals, which know the answer and give it as well as their model should.

One server in a thread speaks as an engine (OpenAI's API without a key) and as three vendors, each in its own form and
behind its own key. A row carries its answer between ``[[`` and ``]]``; what a model makes of it is its persona: right
always, right for rows whose number is even, never, or an error.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from typing import Any, Final

from aiohttp import web

VENDOR_KEY: Final = "vendor-secret-key"
_ANSWER: Final = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_NUMBER: Final = re.compile(r"row (\d+)")
PROMPT_TOKENS, COMPLETION_TOKENS = 123, 45


class Personas:
    """The server.

    Attributes:
        right: by model, how it answers: ``always``, ``even``, ``never``, ``broken``, or a JSON object to say as it is.
        asked: how often each model was asked.
        seen: the last body of each model.
        delay_s: before each answer.
    """

    def __init__(self, right: dict[str, str], *, port: int = 0) -> None:
        self._port = port
        self.right = right
        self.asked: Counter[str] = Counter()
        self.seen: dict[str, Any] = {}
        self.delay_s = 0.0
        self.refusals: list[int] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=200 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_post("/engine/v1/chat/completions", self._openai)
        app.router.add_get("/engine/health", self._health)
        app.router.add_post("/locked/v1/chat/completions", self._locked)
        app.router.add_get("/locked/health", self._health)
        app.router.add_post("/v1/chat/completions", self._openai_vendor)
        app.router.add_post("/v1/messages", self._anthropic)
        app.router.add_post("/v1beta/models/{model}", self._google)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.Response()

    async def _locked(self, request: web.Request) -> web.Response:
        """An engine that wants a key."""
        if request.headers.get("Authorization") != f"Bearer {VENDOR_KEY}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        return await self._openai(request)

    async def _openai_vendor(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {VENDOR_KEY}"
        body = await request.json()
        assert "max_completion_tokens" in body
        return await self._openai(request)

    async def _openai(self, request: web.Request) -> web.Response:
        body = await request.json()
        said = await self._say(body["model"], body, _texts(body["messages"]))
        if isinstance(said, web.Response):
            return said
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS,
                 "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS}  # fmt: skip
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return web.json_response(
            {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice],
             "usage": usage}
        )  # fmt: skip

    async def _anthropic(self, request: web.Request) -> web.Response:
        assert request.headers["x-api-key"] == VENDOR_KEY
        assert request.headers["anthropic-version"] == "2023-06-01"
        body = await request.json()
        assert body["max_tokens"] > 0
        assert all(message["role"] != "system" for message in body["messages"])
        said = await self._say(body["model"], body, _texts(body["messages"]))
        if isinstance(said, web.Response):
            return said
        usage = {"input_tokens": PROMPT_TOKENS - 20, "cache_read_input_tokens": 20, "output_tokens": COMPLETION_TOKENS}
        return web.json_response(
            {"type": "message", "role": "assistant", "content": [{"type": "text", "text": said}], "usage": usage}
        )

    async def _google(self, request: web.Request) -> web.Response:
        assert request.headers["x-goog-api-key"] == VENDOR_KEY
        model, _, verb = request.match_info["model"].partition(":")
        assert verb == "generateContent"
        body = await request.json()
        text = "\n".join(part.get("text", "") for turn in body["contents"] for part in turn["parts"])
        said = await self._say(model, body, text)
        if isinstance(said, web.Response):
            return said
        usage = {
            "promptTokenCount": PROMPT_TOKENS,
            "candidatesTokenCount": COMPLETION_TOKENS - 5,
            "thoughtsTokenCount": 5,
        }
        return web.json_response(
            {"candidates": [{"content": {"role": "model", "parts": [{"text": said}]}}], "usageMetadata": usage}
        )

    async def _say(self, model: str, body: Any, text: str) -> str | web.Response:
        self.asked[model] += 1
        self.seen[model] = body
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.refusals:
            return web.json_response({"error": "secret words of the vendor"}, status=self.refusals.pop(0))
        persona = self.right.get(model, "never")
        if persona == "broken":
            return web.json_response({"error": {"message": "internal words"}}, status=400)
        if persona.startswith("{"):
            return persona
        answer, number = _ANSWER.search(text), _NUMBER.search(text)
        is_right = persona == "always" or (persona == "even" and number is not None and int(number.group(1)) % 2 == 0)
        return answer.group(1) if is_right and answer is not None else "I do not know."


def _texts(messages: list[dict[str, Any]]) -> str:
    pieces: list[str] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            pieces.append(content)
        else:
            pieces += [part["text"] for part in content if part["type"] == "text"]
    return "\n".join(pieces)
