"""One worker process of a load: an epoll loop over raw sockets, started by `benchmarks.load.run`.

Spoken to in JSON lines. In: the plan, then ``{"begin_s": …}``. Out: ``{"ready": true}``, a few progress lines a second,
at the end ``{"report": …}``; or ``{"failed": "…"}`` if it cannot begin.
"""

from __future__ import annotations

import gc
import heapq
import json
import os
import random
import select
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load.connection import Connection
from benchmarks.load.plan import Arrivals, Load, Target
from benchmarks.load.requests import Requests
from benchmarks.load.tally import Tally
from benchmarks.polling import poll_for
from benchmarks.processes import end_with_parent, open_many_files

_REPORT_S = 0.25
_RETRY_S = 0.1
_LONGEST_SLEEP_S = 0.5


class Worker:
    """Sends its part of a load and counts what comes back.

    Args:
        number: of this worker, from 0, among `processes`.
    """

    def __init__(self, target: Target, load: Load, *, number: int, processes: int) -> None:
        self._load = load
        self._connections = _part(load.connections or 0, number, processes)
        self._most_open = max(1, _part(load.max_open, number, processes))
        self._rate_per_s = (load.rate_per_s or 0.0) / processes
        self._requests = Requests(target, load, seed=load.seed * 1000 + number)
        self._chance = random.Random(load.seed * 1000 + number + 500)
        self.stream, self.expect_status, self.tokens_known = load.stream, load.expect_status, load.tokens_known
        self.epoll = select.epoll()
        self.by_number: dict[int, Connection] = {}
        self.address, self.tls, self.tls_name = _destination(target)
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._measured = Tally()
        self.counting = Tally()  # `_measured` while it is measured, else one that only the progress shows
        self._is_measuring = self._is_stopping = self._is_over = False
        self._open = 0
        self._open_since_s = self._open_area_s = 0.0
        self._open_mean = 0.0
        self._under_way: dict[Connection, None] = {}
        self._from_s = self._to_s = self._due_s = 0.0
        self._cpu_from_s = self._cpu_share = 0.0

    def run(self, begin_s: float) -> dict[str, Any]:
        """Carry it out, beginning at a time of the monotonic clock; returns the report."""
        load = self._load
        self._from_s, self._to_s = begin_s + load.warm_up_s, begin_s + load.total_s
        self._open_since_s = begin_s
        if load.is_open_loop:
            self._due_s = begin_s + self._gap_s()
            self._at(self._due_s, self._arrive)
        else:
            ramp_s = load.warm_up_s / 2
            for number in range(self._connections):
                self._at(begin_s + ramp_s * number / self._connections, lambda: self._next(Connection(self)))
        self._at(self._from_s, self._begin_measuring)
        self._at(self._to_s, self._end_measuring)
        self._at(begin_s + _REPORT_S, self._tell)
        try:
            self._loop()
        finally:
            self._close()
        return {
            "tally": self._measured.to_json(),
            "open_mean": self._open_mean,
            "cpu_share": self._cpu_share,
        }

    # -- the loop --------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        epoll, by_number, timers, clock_s = self.epoll, self.by_number, self._timers, time.monotonic
        while True:
            now_s = clock_s()
            while timers and timers[0][0] <= now_s and not self._is_over:
                heapq.heappop(timers)[2]()
            if self._is_over:
                return
            sleep_s = min(timers[0][0] - clock_s(), _LONGEST_SLEEP_S) if timers else _LONGEST_SLEEP_S
            for number, mask in poll_for(epoll, sleep_s):
                connection = by_number.get(number)
                if connection is not None:  # closed by what came before it in the same list
                    connection.ready(mask)

    def _at(self, due_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (due_s, next(self._numbers), act))

    # -- sending ---------------------------------------------------------------------------------------------

    def _next(self, connection: Connection) -> None:
        """Closed loop: the next request of a connection."""
        if not self._is_stopping:
            self._send(connection, time.monotonic())

    def _arrive(self) -> None:
        """Open loop: send what is due, or let it wait for a connection."""
        now_s = time.monotonic()
        while self._due_s <= now_s and self._due_s < self._to_s:
            if self._open < self._most_open:
                self._send(self._idle.pop() if self._idle else Connection(self), self._due_s)
            else:
                self._waiting.append(self._due_s)
            self._due_s += self._gap_s()
        if self._due_s < self._to_s:
            self._at(self._due_s, self._arrive)

    def _gap_s(self) -> float:
        if self._load.arrivals is Arrivals.EVEN:
            return 1 / self._rate_per_s
        return self._chance.expovariate(self._rate_per_s)

    def _send(self, connection: Connection, due_s: float) -> None:
        self._count_open(+1)
        self._under_way[connection] = None
        request, tokens = self._requests.next()
        connection.send(request, tokens, due_s=due_s)
        if self._load.is_open_loop and self._is_of_interest(due_s):
            self._measured.times["send_lag"].add(connection.sent_s - due_s)

    # -- what connections tell: benchmarks.load.connection.Owner ---------------------------------------------

    def first_event(self, connection: Connection, now_s: float) -> None:
        """The first event of an answer was read."""
        if self._is_of_interest(connection.due_s):
            times = self._measured.times
            times["first_token"].add(now_s - connection.due_s)
            times["first_token_sent"].add(now_s - connection.sent_s)

    def ended(self, connection: Connection, now_s: float, error: str | None) -> None:
        """An answer ended: count it, and send the next one."""
        self._count_open(-1)
        del self._under_way[connection]
        tally = self.counting
        if connection.status:
            tally.statuses[connection.status] += 1
        if error is None:
            tally.requests += 1
        else:
            tally.errors[error] += 1
        if self._is_of_interest(connection.due_s):
            self._measured.times["latency"].add(now_s - connection.due_s)
            self._measured.times["latency_sent"].add(now_s - connection.sent_s)
        self._go_on(connection, has_failed=error is not None)

    def later(self, connection: Connection, error: str) -> None:
        """A request could not be sent."""
        self._at(time.monotonic(), lambda: self.ended(connection, time.monotonic(), error))

    def _go_on(self, connection: Connection, *, has_failed: bool) -> None:
        if self._load.is_open_loop:
            if self._waiting:
                self._send(connection, self._waiting.popleft())
            else:
                self._idle.append(connection)
        elif has_failed and not connection.is_open:
            # A server that is gone would be asked without a pause.
            self._at(time.monotonic() + _RETRY_S, lambda: self._next(connection))
        else:
            self._next(connection)
        if self._is_stopping and not self._under_way:
            self._finish()

    def _is_of_interest(self, due_s: float) -> bool:
        """Whether the times of an answer count.

        Of an open loop those that were due in the measured time, whenever they end: what the server delayed beyond
        it must not be missing. Of a closed loop those that end in it.
        """
        if self._load.is_open_loop:
            return self._from_s <= due_s < self._to_s
        return self._is_measuring

    # -- phases ----------------------------------------------------------------------------------------------

    def _begin_measuring(self) -> None:
        self.counting = self._measured
        self._is_measuring = True
        self._count_open(0)
        self._open_area_s = 0.0
        self._cpu_from_s = time.process_time()

    def _end_measuring(self) -> None:
        self._count_open(0)
        self._open_mean = self._open_area_s / self._load.seconds
        self._cpu_share = (time.process_time() - self._cpu_from_s) / self._load.seconds
        self.counting = Tally()
        self._is_measuring, self._is_stopping = False, True
        self._at(time.monotonic() + self._load.drain_s, self._finish)
        if not self._under_way and not self._waiting:
            self._finish()

    def _finish(self) -> None:
        """Hang up what did not end. Of an open loop its latency is at least what it has taken until now."""
        now_s = time.monotonic()
        self._is_over = True
        for connection in list(self._under_way):
            if not self._load.is_open_loop:
                if connection.is_silent and connection.sent_s < self._from_s:
                    self._measured.errors["no answer in all of the measured time"] += 1
                else:
                    self._measured.cut += 1
            elif self._is_of_interest(connection.due_s):
                self._give_up(now_s, connection.due_s, connection.sent_s)
            connection.close()
        for due_s in filter(self._is_of_interest, self._waiting):
            self._give_up(now_s, due_s, now_s)

    def _close(self) -> None:
        for connection in list(self.by_number.values()):
            connection.close()
        self.epoll.close()

    def _give_up(self, now_s: float, due_s: float, sent_s: float) -> None:
        self._measured.errors["not ended in time"] += 1
        self._measured.times["latency"].add(now_s - due_s)
        self._measured.times["latency_sent"].add(now_s - sent_s)

    def _count_open(self, change: int) -> None:
        now_s = time.monotonic()
        self._open_area_s += self._open * (now_s - self._open_since_s)
        self._open_since_s = now_s
        self._open += change

    def _tell(self) -> None:
        """A line for who watches."""
        tally = self.counting
        tally.fold_gaps()
        _say({"requests": tally.requests, "events": tally.events, "errors": tally.errors.total(), "open": self._open})
        self._at(time.monotonic() + _REPORT_S, self._tell)


def main() -> None:
    """Read the plan, say ready, begin when told, report."""
    plan = json.loads(sys.stdin.readline())
    end_with_parent(plan["parent"])
    if plan["core"] is not None:
        os.sched_setaffinity(0, {plan["core"]})
    open_many_files()
    try:
        target = Target(**plan["target"])
        worker = Worker(target, Load.from_json(plan["load"]), number=plan["number"], processes=plan["processes"])
    except OSError as error:
        _say({"failed": f"{plan['target']['base_url']} cannot be used: {error.strerror or error}."})
        return
    # Nothing here has cycles worth the collector's pauses.
    gc.freeze()
    gc.disable()
    _say({"ready": True})
    begin = json.loads(sys.stdin.readline() or "{}")
    if begin:
        _say({"report": worker.run(begin["begin_s"])})


def _part(whole: int, number: int, processes: int) -> int:
    """This worker's share of a whole number."""
    return whole // processes + (number < whole % processes)


def _destination(target: Target) -> tuple[tuple[int, tuple[Any, ...]], ssl.SSLContext | None, str]:
    """Where to connect to, looked up once."""
    parts = urlsplit(target.base_url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return (family, address), ssl.create_default_context() if parts.scheme == "https" else None, host


def _say(message: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
