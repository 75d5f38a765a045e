"""Sleep in epoll to the microsecond: what the load generator and the mock engine have in common."""

from __future__ import annotations

import select

_FINE_S = 0.003
_MOST_EVENTS = 4096


def poll_for(epoll: select.epoll, sleep_s: float) -> list[tuple[int, int]]:
    """What is ready, at the latest after `sleep_s`, or up to 2 ms earlier with nothing.

    epoll counts whole milliseconds and rounds them up, by which a request would be late that is due in between. So the
    last of a sleep goes through select, which counts microseconds, and which an epoll is a file like any other for.
    """
    if sleep_s >= _FINE_S:
        sleep_s -= _FINE_S / 2
    elif sleep_s > 0:
        select.select((epoll.fileno(),), (), (), sleep_s)
        sleep_s = 0.0
    return epoll.poll(max(0.0, sleep_s), _MOST_EVENTS)
