"""Words that an operator types and what they mean: amounts, rates, shares, moments, limits.

Floor: cli.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import click

from gateway.core.state import Limits
from ledger.core.meters import Meter
from ledger.core.money import format_usd, parse_usd
from ledger.core.pricing import UNITS_PER_RATE, WHOLE_BPS

_DURATION: Final = re.compile(r"(\d{1,6})([smhdw])")
_PERCENT: Final = re.compile(r"(\d{1,3})(?:\.(\d{1,2}))?%?")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

UNIT_NAMES: Final = {Meter.IMAGE: "image", Meter.AUDIO_SECOND: "second"}
"""Meters whose price is named for one unit. Cards hold every rate for a million units, that of a request apart."""


def usd(text: str) -> int:
    """Dollars such as ``12.50``, as nano-USD; exact and not negative. For ``click.option(type=…)``.

    Raises:
        click.BadParameter: it is something else; the text says what is wrong with it.
    """
    try:
        nanos = parse_usd(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if nanos < 0:
        raise click.BadParameter(f"{text!r} is negative.")
    return nanos


def moment(text: str) -> datetime:
    """A moment: ``30d`` (from now; s, m, h, d or w), or ISO 8601 such as ``2027-01-31T12:00+01:00`` (no zone: UTC).

    Raises:
        click.BadParameter: it is neither.
    """
    if span := _DURATION.fullmatch(text):
        return datetime.now(UTC) + timedelta(seconds=int(span[1]) * _SECONDS[span[2]])
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a span such as 30d nor a time such as 2027-01-31T12:00Z."
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def moment_of_ms(ms: int) -> datetime:
    """Unix milliseconds as a moment."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def percent(text: str) -> int:
    """A share such as ``12.5`` or ``12.5%`` as basis points, 0 to 10,000; exact. For ``click.option(type=…)``.

    Raises:
        click.BadParameter: it is none, or finer than a hundredth of a percent.
    """
    found = _PERCENT.fullmatch(text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is not a percentage such as 12.5, with at most two places.")
    bps = 100 * int(found[1]) + int((found[2] or "").ljust(2, "0"))
    if bps > WHOLE_BPS:
        raise click.BadParameter(f"{text!r} is more than 100 percent.")
    return bps


def percent_text(bps: int) -> str:
    """Basis points as a percentage: ``12.5``."""
    return f"{bps // 100}.{bps % 100:02d}".rstrip("0").rstrip(".")


def rate_text(meter: Meter, rate_nanos: int) -> tuple[str, str]:
    """A rate of a price card in dollars, and for how much: ``("0.002", "image")``, ``("0.60", "million")``."""
    if meter is Meter.REQUEST:
        return format_usd(rate_nanos), "request"
    unit = UNIT_NAMES.get(meter)
    if unit is None:
        return format_usd(rate_nanos), "million"
    per_unit, rest = divmod(rate_nanos, UNITS_PER_RATE)
    return (f"{Decimal(rate_nanos).scaleb(-15).normalize():f}" if rest else format_usd(per_unit)), unit


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The three limits; 0 means none."""
    for name, what in (
        ("--concurrent", "Most requests open at once; 0 means no limit."),
        ("--tokens-per-minute", "Most tokens a minute; 0 means no limit."),
        ("--requests-per-minute", "Most requests a minute; 0 means no limit."),
    ):
        command = click.option(name, type=click.IntRange(0, 1 << 40), metavar="N", help=what)(command)
    return command


def limits_from(
    requests_per_minute: int | None, tokens_per_minute: int | None, concurrent: int | None, *, before: Limits
) -> Limits:
    """The limits that were asked for; what was not mentioned stays as it was before."""
    return Limits(
        requests_per_minute=before.requests_per_minute if requests_per_minute is None else requests_per_minute or None,
        tokens_per_minute=before.tokens_per_minute if tokens_per_minute is None else tokens_per_minute or None,
        concurrent=before.concurrent if concurrent is None else concurrent or None,
    )
