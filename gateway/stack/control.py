"""The control process: ``python -m gateway control``. It answers the platform's routes for the workers.

Floor: stack. It listens on loopback, on a port that the system chooses, and writes where and with which secret into a
file of the data folder that only its owner can read. It may be slow, or die and be started again: inference does not
notice. Beside the routes it runs the loops that bring endpoints up and work on eval runs, and the listener that takes
uploads of large documents.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web

from gateway.app import Money, open_ledger
from gateway.control.api.caller import Handler, application
from gateway.control.api.documents import Documents
from gateway.control.api.endpoints import Endpoints
from gateway.control.api.evals import EvalRuns, EvalSets
from gateway.control.api.metrics import Metrics
from gateway.control.api.tasks import Tasks
from gateway.control.database import Store
from gateway.control.deploys.drivers import Driver, Static
from gateway.control.deploys.kubernetes import ApiServer, Kubernetes
from gateway.control.deploys.loop import DeployLoop
from gateway.control.deploys.process import Process
from gateway.control.deploys.triton import Triton
from gateway.control.evals.engines import OpenModels
from gateway.control.evals.grading import Grader
from gateway.control.evals.money import RunMoney
from gateway.control.evals.runner import EvalRunner
from gateway.control.evals.sigv4 import S3Access
from gateway.control.evals.storage import open_blobs
from gateway.control.judging.desk import JudgeDesk
from gateway.control.judging.judge import JudgeModel
from gateway.control.metrics.outages import OutageWatch
from gateway.control.vendors.client import Access, VendorModels
from gateway.control.vendors.wire import VENDORS
from gateway.core.inner import SAMPLES
from gateway.settings import Settings
from gateway.stack.engine_host import LocalEngines
from gateway.stack.processes import write_private
from gateway.stack.stopping import StopRequest
from ledger.books.ledger import Ledger
from ledger.errors import LedgerUnavailable

log = logging.getLogger("pareta.control")

HOST = "127.0.0.1"
CONNECTIONS = 12
SHUTDOWN_S = 2.0
RETRY_S = 1.0
JOURNAL = "control"
DEMO_VENDOR_KEY = "demo"  # of an engine without keys


async def run_control(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: has ``database_url`` and ``redis_url``.
    """
    stop = StopRequest()
    stop.listen()
    async with AsyncExitStack() as stack:
        database = await Store.open(settings.database_url, size=CONNECTIONS, timeout_s=settings.postgres_timeout_s)
        stack.push_async_callback(database.close)
        money = await _ledger(stack, settings, stop)
        if money is None:
            return
        ledger = Ledger(money.pool)
        engines = LocalEngines(settings.data_path)
        stack.push_async_callback(engines.close)
        drivers: dict[str, Driver] = {
            "static": Static(),
            "process": Process(engines, most=settings.max_engines, linger_s=settings.engine_linger_s),
            "kubernetes": Kubernetes(_api_server(settings), linger_s=settings.engine_linger_s),
            "triton": Triton(linger_s=settings.engine_linger_s),
        }
        # The judge's engines run for as long as there is a judge.
        always = (settings.judge_model,) if settings.judge_model else ()
        deploys = DeployLoop(database, ledger, drivers, patience_s=settings.deploy_timeout_s, always=always)
        access = S3Access(settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token)
        blobs = await stack.enter_async_context(open_blobs(settings.blob_store_url, access, folder=settings.data_path))
        run_money = RunMoney(money.counter, money.cover, money.outbox, ledger)
        open_models = OpenModels(
            database, drivers, patience_s=settings.deploy_timeout_s, model_folders=settings.model_folders
        )
        vendor_models = await stack.enter_async_context(VendorModels.open(_access(settings)))
        judge = None
        if settings.judge_model:
            judge = JudgeModel(database, open_models, vendor_models, settings.judge_model)
            stack.push_async_callback(judge.close)
        grader = await stack.enter_async_context(Grader.open(judge))
        desk = JudgeDesk(database, grader, judge)
        evals = EvalRunner(
            database, run_money, open_models=open_models, vendor_models=vendor_models, grader=grader, blobs=blobs
        )
        documents = Documents(database, blobs, upload_root="")
        documents.upload_root = await stack.enter_async_context(_uploads(documents, settings))
        handlers: dict[tuple[str, str], Handler] = {
            **Tasks(database).handlers(),
            **Endpoints(
                database, deploys, public_url=settings.effective_public_url, most=settings.max_endpoints
            ).handlers(),
            **Metrics(database).handlers(),
            **EvalSets(database).handlers(),
            **EvalRuns(database, run_money, evals).handlers(),
            **documents.handlers(),
        }
        works = {
            "engines": engines.watch(),
            "deploys": deploys.run(),
            "evals": evals.run(),
            "outages": OutageWatch(database).run(),
            "judge": desk.run(),
        }
        for name, work in works.items():
            stack.push_async_callback(_stop_task, asyncio.create_task(work, name=name))
        await stack.enter_async_context(_routes(handlers, desk, settings))
        await stop.wait()


@asynccontextmanager
async def _routes(handlers: dict[tuple[str, str], Handler], desk: JudgeDesk, settings: Settings) -> AsyncIterator[None]:
    """Serve the routes to this installation's workers, and tell them where."""
    secret = secrets.token_urlsafe(32)
    runner = web.AppRunner(
        application(handlers, secret, hears={SAMPLES: desk.take}), access_log=None, handle_signals=False
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, 0, shutdown_timeout=SHUTDOWN_S).start()
        port = runner.addresses[0][1]
        file = settings.control_file
        await asyncio.to_thread(write_private, file, json.dumps({"url": f"http://{HOST}:{port}", "token": secret}))
        log.info("the control process serves on %s:%d", HOST, port)
        yield
        await asyncio.to_thread(file.unlink, missing_ok=True)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _uploads(documents: Documents, settings: Settings) -> AsyncIterator[str]:
    """Take uploads; yields the root that customers reach the listener at."""
    runner = web.AppRunner(documents.upload_application(), access_log=None, handle_signals=False)
    await runner.setup()
    try:
        wanted = settings.upload_port or min(settings.port + 2, 65535)
        try:
            await web.TCPSite(runner, settings.host, wanted, shutdown_timeout=SHUTDOWN_S).start()
        except OSError as error:
            if settings.upload_port or error.errno != errno.EADDRINUSE:
                raise
            await web.TCPSite(runner, settings.host, 0, shutdown_timeout=SHUTDOWN_S).start()
        port = runner.addresses[0][1]
        log.info("uploads are taken on %s:%d", settings.host, port)
        yield (settings.upload_url or f"http://{settings.host}:{port}").rstrip("/")
    finally:
        await runner.cleanup()


async def _ledger(stack: AsyncExitStack, settings: Settings, stop: StopRequest) -> Money | None:
    """The ledger, waiting for a Postgres that is away; ``None`` when asked to stop before."""
    while not stop.asked:
        try:
            return await stack.enter_async_context(open_ledger(settings, JOURNAL, None))
        except LedgerUnavailable as error:
            log.warning("%s Trying again every %g s.", error, RETRY_S)
            await stop.hurried(stop.wait(), RETRY_S)
    return None


def _api_server(settings: Settings) -> ApiServer | None:
    """The cluster that engines may be deployed to, if there is one."""
    if not settings.kubernetes_url:
        return ApiServer.of_this_pod()
    files = (settings.kubernetes_token_file, settings.kubernetes_ca_file)
    token, ca = (Path(file) if file else None for file in files)
    return ApiServer(settings.kubernetes_url, token, ca)


def _access(settings: Settings) -> dict[str, Access]:
    """How each vendor is reached, if at all."""
    told = {
        "openai": (settings.openai_base_url, settings.openai_api_key),
        "anthropic": (settings.anthropic_base_url, settings.anthropic_api_key),
        "google": (settings.gemini_base_url, settings.gemini_api_key),
        "demo": (settings.demo_vendor_url, DEMO_VENDOR_KEY if settings.demo_vendor_url else ""),
    }
    return {name: Access(url or VENDORS[name].default_url, key) for name, (url, key) in told.items()}


async def _stop_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
