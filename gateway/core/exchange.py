"""The exchange: one request and all that is learned about it on its way.

Floor: core (pure). It is the only thing the stages share, and it ends as the canonical log line and as metrics.
It never holds a key's secret, and what it says of itself never includes a prompt or an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from backends.wire.request import Kind
from backends.wire.usage import Observed
from gateway.core.openai import Ask
from gateway.core.state import Endpoint, Key
from ledger.core.pricing import Discount, PriceCard


class Ending(StrEnum):
    """How the work behind an exchange ended; it decides what is charged.

    ``LENGTH``: we ended a stream at what is paid for, because it had outgrown its hold; it counts like a finished one.
    """

    FINISHED = "finished"
    LENGTH = "length"
    ABANDONED = "abandoned"
    FAILED = "failed"


@dataclass(slots=True)
class Exchange:
    """One request.

    ``prompt_of_record`` says whether the endpoint's was put before the messages; None: it has none.
    ``claim`` is the name of the client's idempotency key; ``replayed`` says that an earlier outcome was the answer.
    ``token_buckets`` and ``open_places`` name the limits that its hold took from, to be given back; a bucket with the
    tokens it took. ``held_epoch`` is the ledger's epoch that the hold was taken in.
    Times named ``_s`` are monotonic, ``_ms`` is Unix time.
    """

    request_id: str
    route: str
    started_s: float
    started_ms: int
    client_request_id: str | None = None
    kind: Kind | None = None
    key: Key | None = None
    ask: Ask | None = None
    endpoint: Endpoint | None = None
    card: PriceCard | None = None
    discount: Discount | None = None
    backend_id: str | None = None
    attempts: int = 0
    held_nanos: int | None = None
    held_epoch: int = 0
    claim: str | None = None
    replayed: bool = False
    prompt_of_record: bool | None = None
    token_buckets: tuple[tuple[str, int], ...] = ()
    open_places: tuple[str, ...] = ()
    status: int = 0
    error_code: str | None = None
    first_byte_s: float | None = None
    upstream_sent_s: float | None = None
    upstream_done_s: float | None = None
    ending: Ending | None = None
    observed: Observed | None = None
    billed_nanos: int | None = None

    @property
    def discount_bps(self) -> int:
        """The discount that was in force when the request began, in basis points of its price."""
        return 0 if self.discount is None else self.discount.bps

    def discount_info(self) -> dict[str, str | int]:
        """What the ledger is told of the discount; nothing if there is none."""
        return {} if self.discount is None else {"discount": self.discount.id, "discount_bps": self.discount.bps}
