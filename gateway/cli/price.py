"""price: set, list.

Floor: cli. A price is never changed: the card in force is closed and the next one begins.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import click

from gateway.cli.endpoint import find_endpoint
from gateway.cli.output import show_list, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import UNIT_NAMES, moment, moment_of_ms, rate_text, usd
from ledger.core.meters import Meter
from ledger.core.pricing import UNITS_PER_RATE, PriceCard

_RATES = {
    Meter.PROMPT: "USD per million prompt tokens.",
    Meter.CACHED_PROMPT: "USD per million cached prompt tokens; otherwise as --prompt.",
    Meter.COMPLETION: "USD per million completion tokens.",
    Meter.REASONING: "USD per million reasoning tokens; otherwise as --completion.",
    Meter.REQUEST: "USD per request, whatever its tokens.",
    Meter.IMAGE: "USD per image in a prompt.",
    Meter.AUDIO_SECOND: "USD per second of audio in a prompt; each piece is rounded up to whole seconds.",
}
_WHOSE = click.option("--org", "org", metavar="ORG", help="Whose endpoint, where several have the same name.")


@click.group()
def price() -> None:
    """Price cards of endpoints. ENDPOINT is an id or a name."""


def _rate_options(command: Any) -> Any:
    for meter, text in reversed(_RATES.items()):
        flag = f"--{meter.value.replace('_', '-')}"
        command = click.option(flag, meter.value, type=usd, metavar="USD", help=text)(command)
    return command


@price.command("set")
@click.argument("reference", metavar="ENDPOINT")
@_rate_options
@click.option("--from", "effective_from", type=moment, metavar="TIME", help="From then on; otherwise from now on.")
@_WHOSE
@operator
async def set_(
    place: Place, /, reference: str, effective_from: datetime | None, org: str | None, **rates: int | None
) -> None:
    """Give an endpoint a price. The same price again changes nothing."""
    given = {Meter(name): rate for name, rate in rates.items() if rate is not None}
    asked = {meter: rate * UNITS_PER_RATE if meter in UNIT_NAMES else rate for meter, rate in given.items()}
    if not asked:
        raise click.UsageError("Give at least one rate; for a free endpoint --request 0.")
    record = await find_endpoint(place, reference, org)
    async with place.ledger() as ledger:
        card = await ledger.set_price(record.id, asked, effective_from)
    show_record(place, _record(card), title=f"Price of {record.name}")


@price.command("list")
@click.argument("reference", metavar="ENDPOINT")
@_WHOSE
@operator
async def list_(place: Place, /, reference: str, org: str | None) -> None:
    """List every price card that an endpoint ever had or will have, oldest first."""
    record = await find_endpoint(place, reference, org)
    async with place.ledger() as ledger:
        cards = await ledger.price_cards(record.id)
    show_list(
        place,
        [_record(card) for card in cards],
        columns=("id", "state", "effective_from", "effective_to", "rates_usd"),
        title=f"Prices of {record.name} (USD per million tokens, per request, per image, per second)",
        empty="It has no price yet and answers nothing before it has.",
    )


def _record(card: PriceCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "endpoint_id": card.endpoint_id,
        "state": _state(card, time.time_ns() // 1_000_000),
        "effective_from": moment_of_ms(card.effective_from_ms),
        "effective_to": None if card.effective_to_ms is None else moment_of_ms(card.effective_to_ms),
        "rates_nanos": {meter.value: rate for meter, rate in card.rates.items()},
        "rates_usd": {meter.value: rate_text(meter, rate)[0] for meter, rate in card.rates.items()},
    }


def _state(card: PriceCard, now_ms: int) -> str:
    if card.effective_from_ms > now_ms:
        return "future"
    return "past" if card.effective_to_ms is not None and card.effective_to_ms <= now_ms else "current"
