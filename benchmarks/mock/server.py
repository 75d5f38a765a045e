"""The mock engine's loop: epoll over raw sockets, one tick for all streams that are due.

A tick sends the same bytes to every stream of its slot, which is what engines do that decode in batches: all sequences
get their token at the same time. A client that does not read is left out of ticks until it does.
"""

from __future__ import annotations

import heapq
import json
import select
import socket
import time
from collections.abc import Callable
from itertools import count

from benchmarks.mock import request
from benchmarks.mock.answers import Answers, respond
from benchmarks.polling import poll_for

_READ_BYTES = 256 * 1024
BACKLOG = 16_384
_LONGEST_SLEEP_S = 1.0
_SLOT_S = 0.01
"""Streams with more time than this between tokens are spread over slots; those with less tick all together."""
_CATCH_UP_S = 0.1


class Client:
    """One connection of a client, and the stream on it that is paced, if any."""

    __slots__ = (
        "closes", "data", "is_open", "is_stuck", "left", "number", "out", "prompt_tokens", "send", "sock", "tokens",
        "usage",
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.number = sock.fileno()
        self.send = sock.send
        self.data = b""
        self.out: bytes | memoryview = b""
        self.is_open = True
        self.is_stuck = False
        self.closes = False
        self.left = 0
        self.tokens = self.prompt_tokens = 0
        self.usage = False


class MockEngine:
    """Serves until the process ends.

    Args:
        listener: a listening socket.
        answers: what is said; its model's name takes no part in which requests are answered.
        ttft_s: time from a request to its first token.
        itl_s: time between two tokens of a stream; 0 sends all at once.
    """

    def __init__(self, listener: socket.socket, answers: Answers, *, ttft_s: float, itl_s: float) -> None:
        self._listener = listener
        self.answers = answers
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._wheels: dict[float, Wheel] = {}
        self._ttft_s, self._itl_s = ttft_s, itl_s
        self._hand: Wheel | None = None

    def serve(self) -> None:
        """Loop."""
        self._listener.setblocking(False)
        listening = self._listener.fileno()
        self._epoll.register(listening, select.EPOLLIN)
        timers, clients, clock_s = self._timers, self._clients, time.monotonic
        while True:
            now_s = clock_s()
            while timers and timers[0][0] <= now_s:
                heapq.heappop(timers)[2]()
            sleep_s = min(timers[0][0] - clock_s(), _LONGEST_SLEEP_S) if timers else _LONGEST_SLEEP_S
            for number, mask in poll_for(self._epoll, sleep_s):
                if number == listening:
                    self._accept()
                elif (client := clients.get(number)) is not None:
                    if mask & select.EPOLLOUT:
                        self._flush(client)
                    if mask & ~select.EPOLLOUT and client.is_open:
                        self._read(client)

    def at(self, due_s: float, act: Callable[[], None]) -> None:
        """Call something at a time of the monotonic clock."""
        heapq.heappush(self._timers, (due_s, next(self._numbers), act))

    # -- sockets ---------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # none left, or no file number for it: the client waits
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(sock)
            self._clients[client.number] = client
            self._epoll.register(client.number, select.EPOLLIN)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(client)
            return
        client.data = client.data + data if client.data else data
        # Who asks before it has its answer waits: a client has one request under way.
        if not client.left:
            self._take(client)

    def _take(self, client: Client) -> None:
        """Answer the request that is there, if it is whole."""
        try:
            asked = request.read(client.data)
        except request.NotHttp:
            self.close(client)
            return
        if asked is None:
            if b"\r\nexpect: 100-continue" in client.data[: request.MOST_HEAD_BYTES].lower():
                self._write(client, b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        client.data = client.data[asked.size :]
        client.closes = asked.closes
        self._answer(client, asked)

    def _write(self, client: Client, data: bytes | memoryview) -> None:
        """Send, and keep what does not go."""
        if client.is_stuck:
            client.out = bytes(client.out) + data
            return
        try:
            sent = client.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(client)
            return
        if sent < len(data):
            # Not a copy: one answer may be on its way to many who do not read.
            self.keep(client, memoryview(data)[sent:])

    def keep(self, client: Client, rest: bytes | memoryview) -> None:
        """Send the rest when the client reads again."""
        client.out = rest
        client.is_stuck = True
        self._epoll.modify(client.number, select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, client: Client) -> None:
        data, client.out, client.is_stuck = client.out, b"", False
        self._write(client, data)
        if client.is_open and not client.is_stuck:
            self._epoll.modify(client.number, select.EPOLLIN)
            if client.closes and not client.left:
                self.close(client)

    def close(self, client: Client) -> None:
        """Hang up; the streams of a closed client are forgotten at their next turn."""
        if client.is_open:
            client.is_open = False
            client.left = 0
            del self._clients[client.number]
            client.sock.close()

    def _ended(self, client: Client) -> None:
        """An answer was written: the next request, if it is there."""
        if client.closes and not client.is_stuck:
            self.close(client)
        elif client.data and client.is_open:
            self._take(client)

    # -- answers ---------------------------------------------------------------------------------------------

    def _answer(self, client: Client, asked: request.Request) -> None:
        if asked.line.startswith(b"POST /v1/chat/completions "):
            body = asked.body
            client.tokens, client.prompt_tokens = request.tokens_of(body), request.prompt_tokens_of(body)
            if request.is_stream(body):
                client.usage = request.wants_usage(body)
                self._in(self._ttft_s, client, self._stream)
            else:
                self._in(self._ttft_s + self._itl_s * (client.tokens - 1), client, self._whole)
            return
        self._write(client, self._about(asked))
        self._ended(client)

    def _in(self, delay_s: float, client: Client, answer: Callable[[Client], None]) -> None:
        if delay_s > 0:
            client.left = 1  # it is busy
            self.at(time.monotonic() + delay_s, lambda: answer(client) if client.is_open else None)
        else:
            answer(client)

    def _whole(self, client: Client) -> None:
        client.left = 0
        self._write(client, self.answers.whole(client.prompt_tokens, client.tokens))
        self._ended(client)

    def _stream(self, client: Client) -> None:
        answers, tokens = self.answers, client.tokens
        if self._itl_s <= 0 or tokens == 1:
            client.left = 0
            self._write(client, answers.at_once(client.prompt_tokens, tokens, with_usage=client.usage))
            self._ended(client)
            return
        client.left = tokens - 1
        self._write(client, answers.head + answers.events[0])
        self._wheel().add(client)

    def end_stream(self, client: Client, event: bytes) -> None:
        """The last token, and all that follows it."""
        client.left = 0
        self._write(client, event + self.answers.ending(client.prompt_tokens, client.tokens, with_usage=client.usage))
        self._ended(client)

    def _wheel(self) -> Wheel:
        if self._hand is not None:
            return self._hand
        wheel = self._wheels.get(self._itl_s)
        if wheel is None:
            wheel = self._wheels[self._itl_s] = Wheel(self, self._itl_s)
        return wheel

    def _about(self, asked: request.Request) -> bytes:
        """Everything but completions."""
        path = asked.line.split(b" ")[1].partition(b"?")[0]
        if path == b"/v1/models":
            return self.answers.models()
        if path == b"/mock/pace":
            pace = json.loads(asked.body)
            self._ttft_s, self._itl_s = pace["ttft_ms"] / 1e3, pace["itl_ms"] / 1e3
            self._hand = Wheel(self, self._itl_s, by_hand=True) if pace.get("by_hand") else None
            return respond(pace)
        if path == b"/mock/turn":
            if self._hand is not None:
                self._hand.turn()
            return respond({})
        if path.startswith((b"/health", b"/get_", b"/server_info", b"/model_info", b"/ready", b"/live")):
            return respond({"status": "ok"})
        error = {"message": "There is no such path.", "type": "NotFoundError", "code": 404}
        return respond({"error": error}, b"404 Not Found")


class Wheel:
    """All streams with the same time between tokens; one that is turned by hand waits for `turn`, not for the clock."""

    def __init__(self, engine: MockEngine, itl_s: float, *, by_hand: bool = False) -> None:
        self._engine = engine
        self._by_hand = by_hand
        slots = 1 if by_hand else max(1, round(itl_s / _SLOT_S))
        self._every_s = itl_s / slots
        self._slots: list[list[Client]] = [[] for _ in range(slots)]
        self._turns = 0
        self._due_s = 0.0
        self._streams = 0

    def add(self, client: Client) -> None:
        """A stream that has had its first token gets its next after one turn."""
        # The slot before the one that comes next is the one that comes last.
        self._slots[(self._turns - 1) % len(self._slots)].append(client)
        self._streams += 1
        if self._streams == 1 and not self._by_hand:
            self._due_s = time.monotonic() + self._every_s
            self._engine.at(self._due_s, self.turn)

    def turn(self) -> None:
        """A token for each stream of this slot."""
        engine = self._engine
        answers = engine.answers
        slot = self._turns % len(self._slots)
        event = answers.events[self._turns // len(self._slots) % len(answers.events)]
        size = len(event)
        waiting = self._slots[slot]
        staying: list[Client] = []
        stay = staying.append
        for client in waiting:
            left = client.left
            if left > 1:
                stay(client)
                if client.is_stuck:
                    continue
                try:
                    sent = client.send(event)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    engine.close(client)
                    continue
                client.left = left - 1
                if sent != size:
                    engine.keep(client, event[sent:])
            elif left:
                engine.end_stream(client, event)
        self._slots[slot] = staying
        self._streams -= len(waiting) - len(staying)
        self._turns += 1
        if self._streams and not self._by_hand:
            now_s = time.monotonic()
            self._due_s = max(self._due_s + self._every_s, now_s - _CATCH_UP_S)
            engine.at(self._due_s, self.turn)
