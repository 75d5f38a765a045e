"""Portkey's gateway: Node. Where a request goes stands in its headers.

Its package lets npm choose the newest ``@hono/node-server``, with which (1.19 and Portkey 1.15.2) every stream is
answered with status 500. The pins hold that one at 1.13.8, with which streams work.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.load import Target
from benchmarks.peers.install import PINS, node_modules
from benchmarks.peers.peer import Place, Running, running_program, start_program
from gateway.stack.processes import free_port

LOCK = PINS / "portkey"
PACKAGE = "@portkey-ai/gateway"


class Portkey:
    """One process, without its console."""

    name = "portkey"
    label = "Portkey"
    note = "1 process, headless, NODE_ENV=production, an older @hono/node-server; checks no key, meters nothing"
    is_slow = True

    def __init__(self) -> None:
        self._program = ""

    def install(self, folder: Path) -> None:
        """The npm package."""
        self._program = str(node_modules(folder, LOCK) / PACKAGE / "build" / "start-server.js")

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """One process."""
        port = free_port()
        node = shutil.which("node") or "node"
        command = [node, self._program, "--headless", f"--port={port}"]
        child = start_program("portkey", command, place, environment={"NODE_ENV": "production"})
        target = Target(f"http://127.0.0.1:{port}", "none", model, headers_for(upstream))
        return running_program(child, target, version())


def headers_for(upstream: str) -> dict[str, str]:
    """How a request says where it goes."""
    return {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}


def version() -> str:
    """The pinned one."""
    pinned: str = json.loads((LOCK / "package.json").read_text())["dependencies"][PACKAGE]
    return pinned
