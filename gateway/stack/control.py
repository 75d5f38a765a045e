"""The control process: ``python -m gateway control``. It answers the platform's routes for the workers.

Floor: stack. It listens on loopback, on a port that the system chooses, and writes where and with which secret into a
file of the data folder that only its owner can read. It may be slow, or die and be started again: inference does not
notice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Mapping

from aiohttp import web

from gateway.control.api.caller import Handler, application
from gateway.control.api.tasks import Tasks
from gateway.control.database import Store
from gateway.settings import Settings
from gateway.stack.processes import write_private
from gateway.stack.stopping import StopRequest

log = logging.getLogger("pareta.control")

HOST = "127.0.0.1"
CONNECTIONS = 8
SHUTDOWN_S = 2.0


async def run_control(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: has ``database_url`` and ``redis_url``.
    """
    stop = StopRequest()
    stop.listen()
    database = await Store.open(settings.database_url, size=CONNECTIONS, timeout_s=settings.postgres_timeout_s)
    secret = secrets.token_urlsafe(32)
    runner = web.AppRunner(application(_handlers(database), secret), access_log=None, handle_signals=False)
    try:
        await runner.setup()
        site = web.TCPSite(runner, HOST, 0, shutdown_timeout=SHUTDOWN_S)
        await site.start()
        _, port = runner.addresses[0][:2]
        file = settings.control_file
        await asyncio.to_thread(write_private, file, json.dumps({"url": f"http://{HOST}:{port}", "token": secret}))
        log.info("the control process serves on %s:%d", HOST, port)
        await stop.wait()
        await asyncio.to_thread(file.unlink, missing_ok=True)
    finally:
        await runner.cleanup()
        await database.close()


def _handlers(database: Store) -> Mapping[tuple[str, str], Handler]:
    return {**Tasks(database).handlers()}
