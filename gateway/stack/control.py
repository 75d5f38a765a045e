"""The control process: ``python -m gateway control``. It answers the platform's routes for the workers.

Floor: stack. It listens on loopback, on a port that the system chooses, and writes where and with which secret into a
file of the data folder that only its owner can read. It may be slow, or die and be started again: inference does not
notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets

from aiohttp import web

from gateway.control.api.caller import application
from gateway.control.api.endpoints import Endpoints
from gateway.control.api.tasks import Tasks
from gateway.control.database import Store
from gateway.control.deploys.drivers import DRIVERS
from gateway.control.deploys.loop import DeployLoop
from gateway.settings import Settings
from gateway.stack.processes import write_private
from gateway.stack.stopping import StopRequest
from ledger.books.database import Pool, open_pool
from ledger.books.ledger import Ledger
from ledger.errors import LedgerUnavailable

log = logging.getLogger("pareta.control")

HOST = "127.0.0.1"
CONNECTIONS = 8
SHUTDOWN_S = 2.0
RETRY_S = 1.0


async def run_control(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: has ``database_url`` and ``redis_url``.
    """
    stop = StopRequest()
    stop.listen()
    database = await Store.open(settings.database_url, size=CONNECTIONS, timeout_s=settings.postgres_timeout_s)
    ledger_pool = await _ledger_pool(settings, stop)
    if ledger_pool is None:
        return
    deploys = DeployLoop(database, Ledger(ledger_pool), DRIVERS, patience_s=settings.deploy_timeout_s)
    secret = secrets.token_urlsafe(32)
    handlers = {
        **Tasks(database).handlers(),
        **Endpoints(
            database, deploys, public_url=settings.effective_public_url, most=settings.max_endpoints
        ).handlers(),
    }
    runner = web.AppRunner(application(handlers, secret), access_log=None, handle_signals=False)
    working = asyncio.create_task(deploys.run(), name="deploys")
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
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        await runner.cleanup()
        ledger_pool.terminate()
        await database.close()


async def _ledger_pool(settings: Settings, stop: StopRequest) -> Pool | None:
    """Connections for the ledger, waiting for a Postgres that is away; ``None`` when asked to stop before."""
    while not stop.asked:
        try:
            return await open_pool(
                settings.database_url, size=2, timeout_s=settings.postgres_timeout_s, application_name="pareta-control"
            )
        except LedgerUnavailable as error:
            log.warning("%s Trying again every %g s.", error, RETRY_S)
            await stop.hurried(stop.wait(), RETRY_S)
    return None
