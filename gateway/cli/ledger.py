"""ledger: the proof that the books are right, and what they say.

Floor: cli.
"""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.balance import open_counter
from gateway.cli.ledger_anomalies import anomalies, resolve
from gateway.cli.ledger_export import export
from gateway.cli.ledger_statement import statement
from gateway.cli.ledger_status import status
from gateway.cli.main import DIFFERENCES, UNREACHABLE
from gateway.cli.output import money, show_record, show_text
from gateway.cli.place import Place, operator
from gateway.control.database import NotFound
from ledger.books.database import acquired
from ledger.books.ledger import Ledger
from ledger.proof.audit import AuditReport
from ledger.proof.audit import audit as audit_books
from ledger.proof.block_values import Head
from ledger.proof.blocks import newest_block


def audit_head(text: str) -> Head:
    """A block as ``--head`` prints it. For ``click.option(type=…)``."""
    try:
        return Head.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group()
def ledger() -> None:
    """The books."""


for _command in (status, statement, export, anomalies, resolve):
    ledger.add_command(_command)


@ledger.command()
@click.option("--books-only", is_flag=True, help="Leave out the comparison of Postgres with Redis.")
@click.option(
    "--quiet-timeout",
    "quiet_timeout_s",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    metavar="S",
    help="How long to wait for a moment in which everything in Redis is booked.",
)
@click.option("--head", "only_head", is_flag=True, help="Only print the newest audit block, to be kept elsewhere.")
@click.option(
    "--expect-head", type=audit_head, metavar="N:HASH", help="An audit block noted earlier, which must still be there."
)
@operator
async def audit(
    place: Place, /, books_only: bool, quiet_timeout_s: float, only_head: bool, expect_head: Head | None
) -> None:
    """Recompute every balance from its transfers, every charge from its usage and its price card, every audit block.

    Audit blocks chain all transfers by their hashes. Whoever notes a block (--head) somewhere that this database's
    administrators can't reach, and gives it back later (--expect-head), proves that nothing up to it was changed.

    Exit status 0: everything was looked at and nothing differs. 3: differences. 4: nothing differs, but not everything
    could be looked at.
    """
    if only_head:
        await _show_head(place)
        return
    if not books_only and not place.settings.redis_url:
        raise click.UsageError("The audit compares Redis, too: give --redis-url, or --books-only.")
    async with place.pool() as pool:
        if books_only:
            report = await audit_books(pool, None, expect_head=expect_head)
        else:
            async with open_counter(place, Ledger(pool)) as counter:
                report = await audit_books(pool, counter, quiet_timeout_s=quiet_timeout_s, expect_head=expect_head)
    _show(place, report)
    if not report.clean:
        raise click.exceptions.Exit(DIFFERENCES)
    if report.skipped and not books_only:
        for skipped in report.skipped:
            click.echo(f"error: not looked at: {skipped}", err=True)
        raise click.exceptions.Exit(UNREACHABLE)


async def _show_head(place: Place) -> None:
    async with place.pool() as pool, acquired(pool, "read the newest audit block") as conn:
        newest = await newest_block(conn)
    if newest is None:
        raise NotFound("There is no audit block yet: the reconciler closes them a few minutes behind the present.")
    record = {
        "head": str(newest.head),
        "number": newest.number,
        "hash": newest.hash.hex(),
        "to_posted_at": newest.to_posted_at,
        "made_at": newest.made_at,
    }
    show_text(place, record, str(newest.head))


def _show(place: Place, report: AuditReport) -> None:
    chain = report.chain
    verdict = "no difference" if report.clean else f"{report.difference_count} differences"
    show_record(
        place,
        {
            "verdict": verdict,
            "organizations": report.organizations,
            "top_ups": report.top_ups,
            "grants": report.grants,
            "transfers": report.transfers,
            "usage_events": report.usage_events,
            "redis_accounts": report.redis_accounts,
            "audit_blocks": chain.blocks if chain else 0,
            "audit_head": str(chain.head.head) if chain and chain.head else None,
            "transfers_in_blocks": chain.transfers if chain else 0,
            **money("paid_in", report.paid_in_nanos),
            **money("charged", report.charged_nanos),
            **money("shortfall", report.shortfall_nanos),
            **money("frozen", report.frozen_nanos),
            "recovered_events": report.recovered_events,
            "seconds": round(report.seconds, 3),
            "difference_count": report.difference_count,
            "skipped": report.skipped,
            "checks": [
                {"check": check.name, "promise": check.promise, "verdict": _verdict(check.count, check.skipped)}
                for check in report.checks
            ],
            "differences": [_difference(difference) for difference in report.differences],
        },
        title="Audit",
        sections={
            "checks": ("check", "promise", "verdict"),
            "differences": ("check", "subject", "expected", "found", "note"),
        },
    )


def _verdict(count: int, skipped: str) -> str:
    if count:
        return f"{count} differences"
    return "not looked at" if skipped else "holds"


def _difference(difference: Any) -> dict[str, Any]:
    return {
        "check": difference.check,
        "subject": difference.subject,
        "expected": difference.expected,
        "found": difference.found,
        "note": difference.note,
    }
