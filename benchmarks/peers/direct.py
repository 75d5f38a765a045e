"""No proxy at all: what the engine and the load generator do by themselves."""

from __future__ import annotations

from pathlib import Path

from benchmarks.load import Target
from benchmarks.peers.peer import Place, Running, wait_serving


class Direct:
    """The engine itself."""

    name = "direct"
    label = "direct"
    note = "no proxy; what added latency is counted from"
    is_slow = False

    def install(self, folder: Path) -> None:
        """Nothing to do."""

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """Nothing to start."""
        target = Target(upstream, "none", model)
        no_streams = wait_serving(target, lambda: True)
        return Running(target, [], [], "", no_streams)
