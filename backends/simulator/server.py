"""The process: a listening socket, the engine, and a clean end on SIGTERM."""

import asyncio
import contextlib
import errno
import gc
import resource
import signal
import sys

import uvloop

from backends.simulator.connection import Connection
from backends.simulator.engine import Engine
from backends.simulator.settings import SimulatorSettings
from backends.simulator.vocabulary import PLAIN, corpus

_BACKLOG = 4096


async def serve(settings: SimulatorSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    Prints one line `ready simulator http://HOST:PORT` when connections are accepted.

    Raises:
        OSError: if the port cannot be had.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _raise_file_limit()
    corpus(PLAIN)
    listener = Listener(settings, loop)
    await listener.open()
    gc.collect()
    gc.freeze()  # the word lists live for ever: no collection needs to look at them
    gc.set_threshold(50_000, 50, 50)
    print(f"ready simulator http://{_shown(settings.host)}:{listener.port}", flush=True)
    await stop.wait()
    await listener.close()


class Listener:
    """The listening socket, which can be closed for a while and opened again on the same port."""

    def __init__(self, settings: SimulatorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._server: asyncio.AbstractServer | None = None
        self._pause: asyncio.Task[None] | None = None
        self._headers = f"server: pareta-simulator\r\nx-sim-replica: {settings.replica}\r\n".encode()
        self.port = settings.port
        self.engine = Engine(settings, loop, self.refuse)

    async def open(self) -> None:
        """Listen. Raises: OSError."""
        keep_alive_s = self._settings.keep_alive_s
        self._server = await self._loop.create_server(
            lambda: Connection(self.engine, self._loop, self._headers, keep_alive_s),
            self._settings.host,
            self.port,
            backlog=_BACKLOG,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self, seconds: float) -> None:
        """Refuse new connections for `seconds`, and drop those that are idle."""
        if self._pause is None or self._pause.done():
            self._pause = self._loop.create_task(self._refuse(seconds))

    async def _refuse(self, seconds: float) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self.engine.connections):
            if not connection.busy:
                connection.close()
        await asyncio.sleep(seconds)
        await self.open()

    async def close(self) -> None:
        """Stop listening, end what runs, close all connections."""
        if self._pause is not None:
            self._pause.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pause
        if self._server is not None:
            self._server.close()
        self.engine.stop()
        await asyncio.sleep(0)


def _raise_file_limit() -> None:
    """Thousands of streams need as many descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def run(settings: SimulatorSettings) -> int:
    """Run the process; returns its exit status."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except OSError as error:
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        print(f"simulator: cannot listen on {settings.host}:{settings.port}: {reason}.", file=sys.stderr)
        return 1
    return 0
