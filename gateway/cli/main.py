"""The root of the command line: which command lives in which module, and one way out for every error.

Floor: cli. Modules are imported when their command is called, so that ``--help`` and a worker's start stay quick.

Exit statuses: 0 done; 1 refused or not found; 2 wrong usage or a wrong setting; 3 differences in the books or
something that needs a person; 4 a service can't be reached (a retry is safe); 70 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final

import click

REFUSED: Final = 1
USAGE: Final = 2
DIFFERENCES: Final = 3
UNREACHABLE: Final = 4
BUG: Final = 70
INTERRUPTED: Final = 130

# name -> (module of gateway.cli, its attribute, what --help says of it)
_COMMANDS: Final[Mapping[str, tuple[str, str, str]]] = {
    "up": ("processes", "up", "Run a whole local gateway: databases, engine, demo key and credit."),
    "serve": ("processes", "serve", "Run a gateway on external databases."),
    "worker": ("processes", "worker", "Run one worker process (serve and up start these)."),
    "reconcile": ("processes", "reconcile", "Run the reconciler process (serve and up start it)."),
    "control": ("processes", "control", "Run the control process (serve and up start it)."),
    "migrate": ("setup", "migrate", "Bring the database schemas up to date."),
    "check-config": ("setup", "check_config", "Show every setting; refuse wrong ones."),
    "org": ("org", "org", "Organizations: who pays."),
    "key": ("key", "key", "API keys: mint, list, revoke."),
    "credit": ("credit", "credit", "Credit: pay in, show the balance."),
    "endpoint": ("endpoint", "endpoint", "Endpoints and the backends behind them."),
    "catalog": ("catalog", "catalog", "Tasks, models and their public names, measurements."),
    "serving": ("serving", "serving", "What serves the catalogue's open models."),
    "evals": ("evals", "evals", "Eval runs: how they go."),
    "judge": ("judge", "judge", "Judged live answers, and what the judge cost."),
    "price": ("price", "price", "Price cards of endpoints."),
    "discount": ("discount", "discount", "Discounts of organizations."),
    "receipt": ("receipt", "receipt", "What one request held, used and cost."),
    "ledger": ("ledger", "ledger", "The books: status, audit, statements, exports."),
}


class _LateGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"gateway.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.group(
    cls=_LateGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Commands find the stack by --data-dir (what `up` wrote there), by --database-url and --redis-url, or by "
        "DATABASE_URL and REDIS_URL. Exit statuses: 0 done, 1 refused or not found, 2 wrong usage, 3 differences in "
        "the books or something that needs a person, 4 a service can't be reached."
    ),
)
@click.option("--debug", is_flag=True, help="Show the stack trace of an unexpected error.")
def cli(debug: bool) -> None:
    """Pareta Gateway: an inference gateway with a provably right ledger."""


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status. Every error becomes one sentence on standard error."""
    try:
        status = cli.main(list(arguments), prog_name="pareta-gateway", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        return _explain(error, debug="--debug" in arguments)
    return status if isinstance(status, int) else 0


def _explain(error: Exception, *, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    for kind, status in _expected():
        if isinstance(error, kind):
            print(f"error: {error}", file=sys.stderr)
            return status
    print(
        f"error: something unexpected went wrong ({type(error).__name__}); --debug before the command shows where.",
        file=sys.stderr,
    )
    return BUG


def _expected() -> Sequence[tuple[Any, int]]:
    """Our own errors and what each means for the exit status; the first that fits counts."""
    from gateway.control.database import ControlError, StoreUnavailable
    from gateway.core.ports import StateUnavailable
    from gateway.settings import SettingsError
    from gateway.stack.processes import StackError
    from ledger.books.epochs import EpochMismatch
    from ledger.counter.values import CounterUnavailable
    from ledger.errors import LedgerError, LedgerUnavailable
    from ledger.outbox import OutboxUnavailable
    from ledger.outbox.journal import JournalUnavailable

    return (
        (SettingsError, USAGE),
        ((StoreUnavailable, LedgerUnavailable, CounterUnavailable, StateUnavailable, EpochMismatch), UNREACHABLE),
        ((ControlError, LedgerError, StackError, JournalUnavailable, OutboxUnavailable), REFUSED),
    )
