"""Engines as programs of this host: started, kept running, left alone when the control process dies, found again.

Floor: stack. An engine holds a lock file for as long as it or a child of it lives. A control process that is killed
leaves its engines running, since a large model takes minutes to load; its successor finds them by their locks. One that
is asked to stop ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.control.deploys.process import EngineFailed
from gateway.stack.processes import Child, Spec, StackError, end_leftover, free_port, lock_holder, port_is_free

GRACE_S: Final = 6.0  # below the time that the control process itself is given
LOOK_EVERY_S: Final = 0.5
MOST_LOG_BYTES: Final = 16 * 1024 * 1024
_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_HEALTHY_AFTER_S: Final = 60.0
log = logging.getLogger("pareta.engines")


@dataclass(slots=True)
class _Engine:
    """One program. ``child`` is None for one that a predecessor has started."""

    command: Sequence[str]
    port: int
    environment: Mapping[str, str]
    child: Child | None
    started_s: float
    failures: int = 0
    again_s: float = 0.0


class LocalEngines:
    """The engines of a data folder. See `gateway.control.deploys.process.EngineHost`.

    Args:
        folder: the data folder; locks go to ``run``, ports and logs to ``engines``.
    """

    def __init__(self, folder: Path) -> None:
        self._run = folder / "run"
        self._files = folder / "engines"
        self._engines: dict[str, _Engine] = {}

    @property
    def running(self) -> frozenset[str]:
        """Those that are meant to run, and those that a predecessor has left."""
        return frozenset(self._engines) | {
            lock.name.removeprefix("engine-").removesuffix(".lock")
            for lock in self._run.glob("engine-*.lock")
            if lock_holder(lock) is not None
        }

    async def run(self, name: str, command: Callable[[int], Sequence[str]], environment: Mapping[str, str]) -> int:
        """Make sure that a program runs; returns its port."""
        known = self._engines.get(name)
        remembered = await asyncio.to_thread(self._remembered, name)
        if known is not None and list(known.command) == list(command(known.port)):
            return known.port
        if known is None and remembered is not None and lock_holder(self._lock(name)) is not None:
            port, words = remembered
            if words == list(command(port)):
                self._engines[name] = _Engine(words, port, environment, None, time.monotonic())
                return port
        await self.end(name)  # another command line, or one that nobody knows any more
        wanted = remembered[0] if remembered is not None else None
        try:
            port = free_port(wanted)
            words = list(command(port))
            child = self._start(name, words, environment)
        except (StackError, OSError) as error:
            raise EngineFailed(str(error)) from None
        self._engines[name] = _Engine(words, port, environment, child, time.monotonic())
        await asyncio.to_thread(self._remember, name, port, words)
        log.info("the engine %s starts on port %d", name, port)
        return port

    async def end(self, name: str) -> None:
        """End a program: ask, wait, then kill."""
        engine = self._engines.pop(name, None)
        if engine is not None and engine.child is not None:
            await engine.child.stop(GRACE_S)
        # What it started besides holds the lock as well.
        with contextlib.suppress(StackError):
            await end_leftover(self._lock(name), name=name, stop_signal=signal.SIGTERM, grace_s=GRACE_S)

    async def watch(self) -> None:
        """Start again what has died, ever slower, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for name, engine in list(self._engines.items()):
                if self._is_there(name, engine):
                    if time.monotonic() - engine.started_s > _HEALTHY_AFTER_S:
                        engine.failures = 0
                    await asyncio.to_thread(self._bound_log, name)
                    continue
                if engine.again_s == 0.0:
                    pause_s = _PAUSES_S[min(engine.failures, len(_PAUSES_S) - 1)]
                    log.warning("the engine %s has ended; starting it again in %g s", name, pause_s)
                    engine.again_s, engine.failures = time.monotonic() + pause_s, engine.failures + 1
                elif time.monotonic() >= engine.again_s and port_is_free(engine.port):
                    engine.again_s = 0.0
                    try:
                        engine.child = self._start(name, engine.command, engine.environment)
                        engine.started_s = time.monotonic()
                    except (StackError, OSError) as error:
                        log.error("the engine %s cannot be started: %s", name, error)

    async def close(self) -> None:
        """End all of them."""
        await asyncio.gather(*(self.end(name) for name in self.running))

    def _is_there(self, name: str, engine: _Engine) -> bool:
        return engine.child.running if engine.child is not None else lock_holder(self._lock(name)) is not None

    def _start(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> Child:
        program = shutil.which(words[0])
        if program is None:
            raise StackError(f"There is no program {words[0]!r} on this host.")
        return Child(
            Spec(
                name=f"engine {name}",
                command=[os.path.abspath(program), *words[1:]],
                lock=self._lock(name),
                environment=environment,
                log=self._log(name),
                outlives_parent=True,
            )
        )

    def _lock(self, name: str) -> Path:
        return self._run / f"engine-{name}.lock"

    def _log(self, name: str) -> Path:
        return self._files / f"{name}.log"

    def _bound_log(self, name: str) -> None:
        """Forget what a talkative engine has written; it appends, so that its next line is the first one again."""
        with contextlib.suppress(FileNotFoundError):
            if self._log(name).stat().st_size > MOST_LOG_BYTES:
                os.truncate(self._log(name), 0)

    def _remember(self, name: str, port: int, words: Sequence[str]) -> None:
        self._files.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._files / f"{name}.json").write_text(json.dumps({"port": port, "command": list(words)}))

    def _remembered(self, name: str) -> tuple[int, list[str]] | None:
        try:
            said = json.loads((self._files / f"{name}.json").read_text())
            return int(said["port"]), [str(word) for word in said["command"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
