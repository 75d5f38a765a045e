"""What a peer is: something between a client and an engine that speaks OpenAI's protocol, installed and started here.

Each peer is a module of its own beside this one. It says how it is installed (into a folder of its own, at a pinned
version), how it is started on one core, and how a client has to address it. Nothing here measures.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from benchmarks.load import Target
from gateway.stack.processes import Child, Spec, tail

READY_S = 120.0
ASK_S = 20.0
STOP_S = 20.0
PROGRAM_STOP_S = 3.0
"""A proxy has nothing to lose."""
STREAM_TRIES = 10
UNPROXIED = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"), ""),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
}
"""Whatever proxy a developer has set is not what is measured."""


class PeerFailed(RuntimeError):
    """A peer cannot be installed or does not start; the text is a sentence for the table."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer is to run.

    Attributes:
        installed: the folder that `Peer.install` filled.
        work: an empty folder of its own for configuration, logs and data.
        proxy_core: the core of the proxy itself, which nothing else uses.
        other_cores: those of everything else.
    """

    installed: Path
    work: Path
    proxy_core: int
    other_cores: tuple[int, ...]


@dataclass(slots=True)
class Running:
    """A started peer.

    Attributes:
        target: how a client addresses it.
        proxy_pids: the proxy itself, whose CPU time is what counts; none for the engine without a proxy.
        stack_pids: everything that belongs to it, the proxy included.
        version: what it says of itself.
        no_streams: why it is measured without streams; empty where they work.
        stop: ends it; may be called once.
    """

    target: Target
    proxy_pids: Sequence[int]
    stack_pids: Sequence[int]
    version: str
    no_streams: str = ""
    stop: Callable[[], None] = field(default=lambda: None)


class Peer(Protocol):
    """One way from a client to the engine.

    Attributes:
        name: in tables and files.
        label: in words.
        note: which settings it runs with, in a sentence.
        is_slow: it gets shorter runs, because every request of it takes long.
    """

    name: str
    label: str
    note: str
    is_slow: bool

    def install(self, folder: Path) -> None:
        """Make sure that it is there, in ``folder`` or on this system. Quick when it is.

        Raises:
            PeerFailed: it cannot be had here.
        """

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """Start it in front of an engine (``http://host:port``) and wait until a request comes through.

        Raises:
            PeerFailed: it does not start.
        """


# ---------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """What is started in here runs on these cores only, with all its threads and children.

    A process inherits the cores of the thread that starts it; a change afterwards would miss threads that exist, and
    runtimes that count cores at their start would have started too many.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start_program(
    name: str,
    command: Sequence[str],
    place: Place,
    *,
    environment: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
) -> Child:
    """Start a proxy that is one program, alone on its core, its output in ``<work>/<name>.log``.

    Args:
        without: variables of the environment that it shall not see.
    """
    drop = ["/usr/bin/env", *(part for variable in without for part in ("-u", variable))] if without else []
    spec = Spec(
        name=name,
        command=[*drop, *command],
        lock=place.work / f"{name}.lock",
        environment={**UNPROXIED, **(environment or {})},
        folder=place.work,
        log=place.work / f"{name}.log",
    )
    with pinned((place.proxy_core,)):
        return Child(spec)


def running_program(child: Child, target: Target, version: str) -> Running:
    """A peer that is one program: wait until it serves.

    Raises:
        PeerFailed: it ended, or does not serve in time.
    """
    try:
        no_streams = wait_serving(target, lambda: child.running)
    except PeerFailed as error:
        log = child.spec.log
        asyncio.run(child.stop(PROGRAM_STOP_S))
        said = tail(log, 3).replace("\n", " | ") if log is not None else ""
        raise PeerFailed(f"{error} Its last words: {said or 'none'}") from None
    return Running(target, [child.pid], [child.pid], version, no_streams, lambda: stop_child(child))


def stop_child(child: Child) -> None:
    """Ask it to end, and wait."""
    asyncio.run(child.stop(PROGRAM_STOP_S))


# -------------------------------------------------------------------------------------------- does it serve


def wait_serving(target: Target, is_running: Callable[[], bool], *, within_s: float = READY_S) -> str:
    """Until a whole answer comes through; then try a stream.

    Returns:
        What is wrong with its streams, as a sentence; empty if nothing is.

    Raises:
        PeerFailed: it ended, or there was no answer in time; the text says what came instead.
    """
    give_up_s = time.monotonic() + within_s
    while said := _try(target, stream=False):
        if not is_running():
            raise PeerFailed("It ended before it served.")
        if time.monotonic() > give_up_s:
            raise PeerFailed(f"No request came through within {within_s:.0f} s; the last attempt got: {said}.")
        time.sleep(0.1)
    for _ in range(STREAM_TRIES):
        if not (said := _try(target, stream=True)):
            return ""
        time.sleep(0.1)
    return f"It answers whole, but no stream: {said}."


def _try(target: Target, *, stream: bool) -> str:
    try:
        return _ask(target, stream=stream)
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def _ask(target: Target, *, stream: bool) -> str:
    """Send one request; returns what is wrong with the answer, or nothing."""
    parts = urlsplit(target.base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ASK_S)
    try:
        content = {"model": target.model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 4}
        headers = {"Authorization": f"Bearer {target.api_key}", "Content-Type": "application/json", **target.headers}
        path = f"{target.root}/v1/chat/completions"
        connection.request("POST", path, json.dumps({**content, "stream": stream}), headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            return f"status {answer.status}, {body[:120].decode('utf-8', 'replace')}"
        is_whole = b"data: [DONE]" in body if stream else b'"choices"' in body
        return "" if is_whole else f"an answer that is not whole, {body[:120].decode('utf-8', 'replace')}"
    finally:
        connection.close()
