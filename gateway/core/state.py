"""What the hot path knows of the platform: keys, endpoints, backends, prices.

Floor: core (pure). Values only; ``gateway.edges.state_feed`` keeps them fresh, nothing here knows how.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ledger.core.pricing import Discount, PriceCard, discount_at


class Scope(StrEnum):
    """What a key may do: everything, or only read."""

    FULL = "full"
    READ = "read"


class EndpointStatus(StrEnum):
    """Where an endpoint stands in its life. Only ``live`` answers chat."""

    DEPLOYING = "deploying"
    STARTING = "starting"
    LIVE = "live"
    STOPPED = "stopped"
    FAILED = "failed"
    SEED = "seed"


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of a key or an organization; ``None`` means none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the hot path sees it. ``secret_hash`` is SHA-256 of the secret part, 32 bytes."""

    id: str
    org_id: str
    secret_hash: bytes
    scope: Scope
    expires_at_s: float | None
    revoked: bool
    limits: Limits
    org_limits: Limits
    org_name: str = ""


BACKEND_KINDS = frozenset({"openai", "triton"})
"""What a backend speaks."""


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """One serving process behind an endpoint.

    ``url`` is the root without ``/v1``, of Triton ``triton://host:port/model``; ``kind`` is ``openai`` or ``triton``;
    ``model`` is the real id sent upstream and never shown to anyone. ``model_folder`` is where its tokenizer and chat
    template lie, ``metrics_url`` the page that tells how busy it is; ``context_tokens`` and ``deadline_s`` are those of
    its endpoint.
    """

    id: str
    url: str
    kind: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    tolerates_unknown_fields: bool = True
    health_path: str = "/health"
    model_folder: str | None = None
    metrics_url: str | None = None
    context_tokens: int = 32_768
    deadline_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A deployed model that customers call by ``id``.

    ``cards`` are the current and future price cards, by ``effective_from_ms`` ascending; ``discounts`` those of its
    organization that may apply to it, in no order.
    ``prompt_of_record`` goes before the messages of a chat without instructions; ``None`` for most.
    ``starts_in_s``: when to call again while it is starting, 1 to 30; ``None``: nobody knows.
    ``sleeps``: it is put to sleep when nobody calls it for a while; ``asleep``: it is stopped for that, and a call
    wakes it.
    ``task_id``: the task that it was deployed for.
    ``capabilities`` is a set of ``chat``, ``completion``, ``embedding``.
    """

    id: str
    org_id: str
    name: str
    alias: str | None
    status: EndpointStatus
    context_tokens: int
    max_output_tokens: int
    deadline_s: float
    created_s: int
    capabilities: frozenset[str]
    backends: tuple[BackendSpec, ...]
    cards: tuple[PriceCard, ...]
    discounts: tuple[Discount, ...] = ()
    prompt_of_record: str | None = None
    starts_in_s: int | None = None
    sleeps: bool = False
    asleep: bool = False
    task_id: str | None = None

    def card_at(self, now_ms: int) -> PriceCard | None:
        """The price card in force at a moment (Unix ms), if any."""
        for card in self.cards:
            if card.effective_from_ms <= now_ms and (card.effective_to_ms is None or now_ms < card.effective_to_ms):
                return card
        return None

    def discount_at(self, now_ms: int) -> Discount | None:
        """The discount in force at a moment (Unix ms), if any."""
        return discount_at(self.discounts, now_ms) if self.discounts else None
