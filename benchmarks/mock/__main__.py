"""``python -m benchmarks.mock --port 9000 --itl-ms 10``: serve until a signal. Prints ``ready mock http://…`` first.

``POST /mock/pace`` with ``{"ttft_ms": 0, "itl_ms": 10}`` changes the pace of what is asked from then on. With
``"by_hand": true`` beside them, streams get their next token when ``POST /mock/turn`` asks for it.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys

import click

from benchmarks.mock.answers import Answers
from benchmarks.mock.server import BACKLOG, MockEngine
from benchmarks.processes import end_with_parent, open_many_files


@click.command(help=__doc__)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, show_default=True, help="0 takes a free one.")
@click.option("--model", default="mock", show_default=True, help="The name it answers under.")
@click.option("--ttft-ms", default=0.0, show_default=True, help="From a request to its first token.")
@click.option("--itl-ms", default=0.0, show_default=True, help="Between two tokens of a stream; 0 sends all at once.")
@click.option("--parent", default=0, help="End with this process, which started this one.")
def main(host: str, port: int, model: str, ttft_ms: float, itl_ms: float, parent: int) -> None:
    """Serve."""
    open_many_files()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    end_with_parent(parent)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise click.ClickException(f"Port {port} on {host} cannot be had: {error.strerror}.") from None
    listener.listen(BACKLOG)
    engine = MockEngine(listener, Answers(model), ttft_s=ttft_ms / 1e3, itl_s=itl_ms / 1e3)
    print(f"ready mock http://{host}:{listener.getsockname()[1]}", flush=True)
    # Nothing here has cycles worth the collector's pauses.
    gc.freeze()
    gc.disable()
    engine.serve()


if __name__ == "__main__":
    main()
