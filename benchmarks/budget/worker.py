"""A worker as `gateway.app` makes it for customers, whose calls are counted: ``python -m benchmarks.budget.worker``.

Nothing of it is replaced, but its housekeeping (gauges, readiness) is put off: it goes by the clock and would be
counted with whatever it happens to fall upon. A thread of its own, which is not counted, tells the counts to whoever
connects to a socket in the file system.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from pathlib import Path
from threading import Thread

import uvloop

from benchmarks.budget.counting import CallCounter
from gateway import app
from gateway import settings as gateway_settings

HOUSEKEEPING_S = 3600.0


def main() -> None:
    """Serve until SIGTERM, with the settings that the environment has; the argument is the socket's path.

    Without an argument nothing is counted, which is how a worker is looked at from outside.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    if len(sys.argv) > 1:
        counter = CallCounter()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(Path(sys.argv[1])))
        listener.listen()
        Thread(target=_tell, args=(counter, listener), daemon=True).start()
        counter.install()
    app.HOUSEKEEPING_S = HOUSEKEEPING_S
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.run_worker(gateway_settings.load(), 0))


def _tell(counter: CallCounter, listener: socket.socket) -> None:
    """Answer each line: ``totals`` or ``names``."""
    while True:
        asking, _ = listener.accept()
        with asking, asking.makefile("rw") as lines:
            for line in lines:
                told = counter.totals() if line.strip() == "totals" else counter.by_name()
                lines.write(json.dumps(told) + "\n")
                lines.flush()


if __name__ == "__main__":
    main()
