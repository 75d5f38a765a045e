"""The Triton server of a local stack: there from the start, there later, or not, and then why.

Floor: stack. Where it is installed it starts while the databases start; where it is not, nothing waits for it unless
the operator asked for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from gateway.stack.demo import Engine, triton_engine
from gateway.stack.demo_model import write_demo_model
from gateway.stack.engines import TRITON_MODEL, EngineChoice, ended, start_triton
from gateway.stack.processes import StackError
from gateway.stack.triton_install import TritonEnvironment, find_installed, install, place_for, why_not_here

_INSTALL_S = 300.0


class TritonOffer:
    """What this run has of Triton.

    Args:
        folder: the data folder.
        cleanup: what is started is put on it.

    Attributes:
        may_come_later: it is not installed, but can be: see :meth:`install_and_start`.
        sentence: why there is none, for the greeting; may be empty.
    """

    def __init__(
        self,
        folder: Path,
        choice: EngineChoice,
        cleanup: AsyncExitStack,
        *,
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        self.may_come_later = False
        self.sentence = ""
        self._folder = folder
        self._choice = choice
        self._cleanup = cleanup
        self._log = log
        self._say = say
        self._place = place_for(folder)
        self._starting: asyncio.Task[Engine] | None = None

    async def begin(self) -> None:
        """Begin to start it, if this run shall have it from the start.

        Raises:
            StackError: it was asked for and cannot be had.
        """
        if self._choice is EngineChoice.SIMULATOR:
            return
        reason = why_not_here()
        environment = find_installed(self._place) if reason is None else None
        if self._choice is EngineChoice.TRITON:
            environment = await install(self._place, timeout_s=_INSTALL_S, say=self._say)
        if environment is not None:
            self._starting = asyncio.create_task(self._start(environment), name="start Triton")
            self._cleanup.push_async_callback(ended, self._starting)
        elif reason is None:
            self.may_come_later = True
            self.sentence = "A Triton server is being installed; an endpoint on it will join (BACKEND=simulator: none)."
        else:
            self.sentence = f"There is no endpoint on Triton: {reason}"

    async def started(self) -> Engine | None:
        """Its engine, when it runs; ``None`` if there is none now.

        Raises:
            StackError: it was asked for and did not start.
        """
        if self._starting is None:
            return None
        try:
            return await self._starting
        except StackError as error:
            if self._choice is EngineChoice.TRITON:
                raise
            self.sentence = f"There is no endpoint on Triton: {str(error).splitlines()[0]}"
            return None

    async def install_and_start(self) -> Engine:
        """Install it and start it. Raises: StackError."""
        return await self._start(await install(self._place, timeout_s=_INSTALL_S, say=self._say))

    async def _start(self, environment: TritonEnvironment) -> Engine:
        server = await start_triton(self._folder, environment, self._cleanup, log=self._log, say=self._say)
        folder = await asyncio.to_thread(write_demo_model, self._folder / "demo-model")
        return triton_engine(server.url(TRITON_MODEL), metrics_url=server.metrics_url, model_folder=folder)
