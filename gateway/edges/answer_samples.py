"""Hands a share of live answers to the control process, which has them judged.

Floor: edges. Nothing waits for it: where samples pile up, or the control process is away, they are dropped and
counted. They are in memory only, and in no log.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import Final

from gateway.core.inner import SAMPLES
from gateway.core.ports import PlatformUnavailable
from gateway.core.samples import make_sample
from gateway.edges.platform_door import PlatformDoor

MAX_WAITING: Final = 16
PAUSE_S: Final = 0.05
log = logging.getLogger("pareta.samples")


class AnswerSamples:
    """The samples of one worker.

    Args:
        share: of all answers, 0 to 1.
    """

    def __init__(self, door: PlatformDoor, share: float) -> None:
        self._door = door
        self._share = share
        self._waiting: deque[bytes] = deque()
        self._come = asyncio.Event()
        self.dropped = 0

    @property
    def is_wanted(self) -> bool:
        """Whether the answer to a request that begins now shall be judged."""
        # Which ones is for chance alone to say: nothing of the request decides.
        return bool(self._share) and random.random() < self._share and len(self._waiting) < MAX_WAITING  # noqa: S311

    def take(self, endpoint_id: str, messages: object, body: bytes, *, stream: bool) -> None:
        """An answer is complete."""
        if len(self._waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        sample = make_sample(endpoint_id, messages, body, stream=stream)
        if sample is not None:
            self._waiting.append(sample)
            self._come.set()

    async def run(self) -> None:
        """Hand them over until cancelled."""
        while True:
            await self._come.wait()
            self._come.clear()
            while self._waiting:
                try:
                    await self._door.tell(SAMPLES, self._waiting.popleft())
                except PlatformUnavailable:
                    self.dropped += 1
                    log.info("The control process is away; an answer is not judged.")
                except Exception as error:
                    # Its text could hold a customer's words, so only its kind is said.
                    self.dropped += 1
                    log.error("An answer cannot be handed over to be judged: %s", type(error).__name__)
                await asyncio.sleep(PAUSE_S)
