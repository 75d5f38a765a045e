"""Money as integers.

Floor: ``ledger.core`` (pure). The unit inside is the nano-USD (10^-9 USD): one embedding call of ten tokens costs
far less than a micro-USD, and rounding each up would overcharge tenfold. The HTTP API speaks micro-USD, floored
once at the edge. There is no float anywhere on the way.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

NANOS_PER_MICRO = 1_000
NANOS_PER_USD = 1_000_000_000

MAX_NANOS = 2**53 - 1
"""The largest amount a Redis script may see: Lua's numbers are doubles, exact up to here."""

MAX_GRANT_NANOS = 2**50
"""The most one account may hold in escrow, so that sums inside a script stay below ``MAX_NANOS``."""

_LONGEST_AMOUNT = 40


def micros_floor(nanos: int) -> int:
    """Nano-USD as whole micro-USD, rounded towards minus infinity: what is shown is never too high."""
    return nanos // NANOS_PER_MICRO


def parse_usd(text: str) -> int:
    """Read dollars as nano-USD, exactly.

    Args:
        text: a plain decimal such as ``12.50``, ``$0.000000001`` or ``-3``; at most nine places.

    Raises:
        ValueError: not such a number, or finer than a nano-USD; the message is a sentence for the operator.
    """
    plain = text.strip().removeprefix("$").replace("_", "")
    if not plain or len(plain) > _LONGEST_AMOUNT or not plain.isascii() or plain.strip("+-.0123456789"):
        raise ValueError(f"{text[:_LONGEST_AMOUNT]!r} is not an amount in US dollars such as 12.50.")
    try:
        nanos = Decimal(plain).scaleb(9)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in US dollars such as 12.50.") from None
    whole = int(nanos)
    if whole != nanos:
        raise ValueError(f"{text!r} is finer than a nano-dollar: at most nine decimal places count.")
    return whole


def format_usd(nanos: int) -> str:
    """Nano-USD as exact dollars: at least two decimal places, at most nine (``12.50``, ``-0.000000001``)."""
    sign = "-" if nanos < 0 else ""
    dollars, rest = divmod(abs(nanos), NANOS_PER_USD)
    places = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{dollars}.{places}"
