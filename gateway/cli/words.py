"""Words that an operator types and what they mean: amounts, moments, limits.

Floor: cli.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from gateway.core.state import Limits
from ledger.core.money import parse_usd

_DURATION: Final = re.compile(r"(\d{1,6})([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


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
