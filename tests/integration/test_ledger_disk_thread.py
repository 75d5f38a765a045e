"""The journal's thread: in order, told in the loop, and not stopped by what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial

import pytest

from ledger.outbox.disk_thread import DiskThread


async def test_work_is_done_in_order_and_told_in_the_loop() -> None:
    """One after the other in one other thread; whoever waits is told in the event loop's own, in the same order."""
    disk = DiskThread(asyncio.get_running_loop())
    done: list[tuple[int, int]] = []
    told: list[tuple[int, int, Exception | None]] = []

    def work(number: int) -> None:
        done.append((number, threading.get_ident()))

    def tell(number: int, error: Exception | None) -> None:
        told.append((number, threading.get_ident(), error))

    for number in range(100):
        disk.submit(partial(work, number), partial(tell, number))
    assert await disk.call(lambda: "last") == "last"
    here = threading.get_ident()
    assert [number for number, _ in done] == list(range(100))
    assert len({thread for _, thread in done} - {here}) == len({thread for _, thread in done}) == 1
    assert told == [(number, here, None) for number in range(100)]
    disk.shutdown()


async def test_what_fails_is_told_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """An error is its caller's, or logged if there is none; the thread works on."""
    disk = DiskThread(asyncio.get_running_loop())

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await disk.call(fail)
    with caplog.at_level(logging.ERROR):
        disk.submit(fail)
        assert await disk.call(lambda: 7) == 7
    assert "stumbled" in caplog.text
    disk.shutdown()


async def test_it_ends_after_all_that_was_given() -> None:
    """A shutdown waits for what was submitted before it."""
    disk = DiskThread(asyncio.get_running_loop())
    done: list[int] = []
    for number in range(50):
        disk.submit(partial(done.append, number))
    await asyncio.to_thread(disk.shutdown)
    assert done == list(range(50))
