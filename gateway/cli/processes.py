"""serve, up, worker, reconcile, control: commands that run until they are told to stop.

Floor: cli. The processes themselves live in ``gateway.stack`` and ``gateway.app`` and are imported when they start.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from typing import Any

import click

from gateway import settings as gateway_settings
from gateway.settings import Settings


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that these commands share; what is not given comes from the environment and the settings file."""
    for option in (
        click.option("--redis-url", metavar="URL", help="redis:// or rediss:// (REDIS_URL)."),
        click.option("--database-url", metavar="URL", help="postgres://… (DATABASE_URL)."),
        click.option("--data-dir", metavar="DIR", help="Folder of journals and embedded databases (DATA_DIR)."),
        click.option("--workers", type=int, metavar="N", help="Worker processes (WORKERS)."),
        click.option("--port", type=int, metavar="N", help="Port of the public API (PORT)."),
        click.option("--host", metavar="ADDRESS", help="Address of the public API (HOST)."),
    ):
        command = option(command)
    return command


@click.command()
@click.option("--new-key", is_flag=True, envvar="NEW_KEY", help="Mint another demo key; the old one stays valid.")
@click.option(
    "--backend",
    "engines",
    type=click.Choice(["simulator", "triton", "both"]),
    default="both",
    envvar="BACKEND",
    help="What the demo runs on: a simulator, a real Triton server (installed if need be), or the first, and the other "
    "as soon as it can be had (the default).",
)
@_with_settings
def up(new_key: bool, engines: str, **given: Any) -> int:
    """Run a whole local gateway until Ctrl-C.

    Starts an embedded Postgres and Redis (unless DATABASE_URL or REDIS_URL is set) and engines without a model,
    migrates, makes a demo organization with credit, a key and endpoints, and prints how to call them.
    """
    settings = gateway_settings.load(**given)
    from gateway.stack import up as stack
    from gateway.stack.engines import EngineChoice

    return asyncio.run(stack.up(settings, new_key=new_key, engines=EngineChoice(engines)))


@click.command()
@_with_settings
def serve(**given: Any) -> int:
    """Run a gateway on external databases until SIGTERM.

    Needs DATABASE_URL and REDIS_URL, and a database that was migrated.
    """
    settings = gateway_settings.load(**given)
    _log_to_stderr()
    from gateway.stack import supervisor

    return asyncio.run(supervisor.serve(settings))


@click.command()
@click.option("--slot", type=click.IntRange(0, 255), default=0, show_default=True, help="This worker's number.")
@_with_settings
def worker(slot: int, **given: Any) -> None:
    """Run one worker process until SIGTERM. serve and up start these."""
    settings = _complete(gateway_settings.load(**given))
    _log_to_stderr()
    from gateway import app

    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(app.run_worker(settings, slot))


@click.command()
@_with_settings
def reconcile(**given: Any) -> None:
    """Run the reconciler until SIGTERM. serve and up start it; a second one waits for the first to go."""
    settings = _complete(gateway_settings.load(**given))
    _log_to_stderr()
    from gateway.stack import reconciler

    asyncio.run(reconciler.run_reconciler(settings))


@click.command()
@_with_settings
def control(**given: Any) -> None:
    """Run the control process until SIGTERM: it answers all routes but inference. serve and up start it."""
    settings = _complete(gateway_settings.load(**given))
    _log_to_stderr()
    from gateway.stack import control as process

    asyncio.run(process.run_control(settings))


def _complete(settings: Settings) -> Settings:
    if not settings.database_url or not settings.redis_url:
        raise gateway_settings.SettingsError("This process needs DATABASE_URL and REDIS_URL.")
    return settings


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The driver tells every failed reconnect with a stack trace; our own lines say it in a sentence.
    logging.getLogger("asyncpg").setLevel(logging.CRITICAL)
