"""ledger statement: what an organization had, paid in, bought and has left in one month.

Floor: cli.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, Final

import click

from gateway.cli.main import DIFFERENCES
from gateway.cli.output import money, show_record
from gateway.cli.place import Place, operator
from gateway.control import organizations
from ledger.core.meters import Meter
from ledger.core.money import NANOS_PER_USD
from ledger.proof.statement import Purchase, Statement
from ledger.proof.statement import statement as draw_up

_WORDS: Final = {
    Meter.PROMPT: "prompt tokens",
    Meter.CACHED_PROMPT: "cached prompt tokens",
    Meter.COMPLETION: "completion tokens",
    Meter.REASONING: "reasoning tokens",
    Meter.REQUEST: "flat price",
    Meter.IMAGE: "images",
    Meter.AUDIO_SECOND: "seconds of audio",
    Meter.EVAL_MICRO_USD: "micro-USD of evals",
}


def month(text: str) -> date:
    """A month such as ``2026-11``. For ``click.option(type=…)``."""
    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a month such as 2026-11.") from None


@click.command()
@click.argument("reference", metavar="ORG")
@click.option("--month", "of", type=month, metavar="YYYY-MM", help="A month in UTC.  [default: this one]")
@operator
async def statement(place: Place, /, reference: str, of: date | None) -> None:
    """Show a month of ORG: opening balance, payments, what was bought, closing balance, and the credit now.

    A month is one in UTC by the time of booking. Opening + payments - charges = closing is checked to the nano; exit
    status 3 if it is not so.
    """
    async with place.control() as conn:
        organization = await organizations.find(conn, reference)
    async with place.pool() as pool:
        found = await draw_up(pool, organization.id, of or datetime.now(UTC).date())
    if place.as_json:
        record = {**_record(found, organization.name), **_parts(found)}
        show_record(place, record, title="")
    else:
        _show(place, found, organization.name)
    if found.off_by_nanos:
        click.echo(
            f"error: opening + payments - charges differs from closing by {found.off_by_nanos} nano-USD; "
            "run ledger audit to find the fault.",
            err=True,
        )
        raise click.exceptions.Exit(DIFFERENCES)


def _record(found: Statement, name: str) -> dict[str, Any]:
    return {
        "org_id": found.org_id,
        "name": name,
        "month": f"{found.since:%Y-%m}",
        "over": found.over,
        **money("opening", found.opening_nanos),
        **money("paid_in", found.paid_in_nanos),
        **money("charged", found.charged_nanos),
        **money("closing", found.closing_nanos),
        "adds_up": not found.off_by_nanos,
    }


def _parts(found: Statement) -> dict[str, Any]:
    return {
        "payments": [
            {
                "booked_at": payment.booked_at,
                "id": payment.id,
                **money("amount", payment.amount_nanos),
                "idempotency_key": payment.idempotency_key,
                "note": payment.note,
            }
            for payment in found.payments
        ],
        "bought": [_purchase(purchase) for purchase in found.purchases],
        "corrections": _corrections(found),
        "shortfalls": {"requests": found.short_requests, **money("amount", found.shortfall_nanos)},
        "credit_now": {
            **money("available", found.available_nanos),
            **money("escrow", found.escrow_nanos),
            **money("frozen", found.frozen_nanos),
        },
    }


def _purchase(purchase: Purchase) -> dict[str, Any]:
    return {
        "endpoint_id": purchase.endpoint_id,
        "alias": purchase.alias,
        "requests": purchase.requests,
        "meters": [
            {"meter": line.meter.value, "units": line.units, **money("list", line.list_nanos)}
            for line in purchase.lines
        ],
        **money("rounding", purchase.rounding_nanos),
        **money("discount", purchase.discount_nanos),
        **money("shortfall", purchase.shortfall_nanos),
        **money("amount", purchase.amount_nanos),
    }


def _corrections(found: Statement) -> dict[str, Any]:
    return {
        "requests": found.corrections.count,
        **money("raised", found.corrections.raised_nanos),
        **money("refunded", found.corrections.refunded_nanos),
    }


def _show(place: Place, found: Statement, name: str) -> None:
    """For people: dollars alone, one under the other, and only what there was."""
    record: dict[str, Any] = {
        "month": f"{found.since:%B %Y} (UTC)" + ("" if found.over else ", so far"),
        **_aligned(
            {
                "opening": found.opening_nanos,
                "paid in": found.paid_in_nanos,
                "charged": -found.charged_nanos,
                "closing": found.closing_nanos,
            }
        ),
    }
    lists: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
        "Paid in": (
            [
                {"booked": paid.booked_at, "payment": paid.id, "usd": _usd(paid.amount_nanos), "note": paid.note}
                for paid in found.payments
            ],
            ("booked", "payment", "usd", "note"),
        ),
        "Bought": (
            [row for purchase in found.purchases for row in _purchase_rows(purchase)],
            ("endpoint", "alias", "what", "units", "usd"),
        ),
    }
    groups: dict[str, dict[str, Any]] = {
        "Corrections (within the charges)": {
            "requests": found.corrections.count,
            **_aligned({"raised": found.corrections.raised_nanos, "refunded": -found.corrections.refunded_nanos}),
        },
        "Borne by the platform": {"requests": found.short_requests, "usd": _usd(found.shortfall_nanos)},
        "Credit now": _aligned(
            {"available": found.available_nanos, "escrow": found.escrow_nanos, "frozen": found.frozen_nanos}
        ),
    }
    sections: dict[str, tuple[str, ...]] = {}
    for title, (rows, columns) in lists.items():
        record[title], sections[title] = _flush_right(rows), columns
    for title, group in groups.items():
        if group.get("requests") != 0:
            record[title], sections[title] = group, ()
    show_record(place, record, title=name, sections=sections)


def _purchase_rows(purchase: Purchase) -> Iterator[dict[str, Any]]:
    """The lines of one purchase; they add up to the last one."""
    names = {"endpoint": purchase.endpoint_id or "-", "alias": purchase.alias or "-"}
    for line in purchase.lines:
        if line.meter is Meter.REQUEST and not line.list_nanos:
            continue  # every request counts one; it is a line only where that has a price
        yield {**names, "what": _WORDS[line.meter], "units": f"{line.units:,}", "usd": _usd(line.list_nanos)}
        names = {"endpoint": " ", "alias": " "}
    for what, nanos in (
        ("rounding", purchase.rounding_nanos),
        ("discount", -purchase.discount_nanos),
        ("not covered", -purchase.shortfall_nanos),
    ):
        if nanos:
            yield {**names, "what": what, "units": " ", "usd": _usd(nanos)}
    requests = "1 request" if purchase.requests == 1 else f"{purchase.requests:,} requests"
    yield {**names, "what": "= charged", "units": requests, "usd": _usd(purchase.amount_nanos)}


def _usd(nanos: int) -> str:
    """Dollars with all nine places, so that they can stand one under the other."""
    dollars, rest = divmod(abs(nanos), NANOS_PER_USD)
    return f"{'-' if nanos < 0 else ''}{dollars:,}.{rest:09}"


def _aligned(amounts: dict[str, int]) -> dict[str, str]:
    texts = {name: _usd(nanos) for name, nanos in amounts.items()}
    width = max(map(len, texts.values()))
    return {name: f"{text:>{width}} USD" for name, text in texts.items()}


def _flush_right(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    width = max((len(row["usd"]) for row in rows), default=0)
    return [{**row, "usd": row["usd"].rjust(width)} for row in rows]
