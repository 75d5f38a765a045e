"""Metrics under the field's names, for prometheus-client in multi-process mode.

Floor: edge. What happens on the hot path is counted in plain Python (``gateway.edges.tallies``) and published by the
worker's clock. Labels take only words of our own (routes, codes, kinds); nothing a stranger sends becomes a label.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.core.exchange import Exchange
from gateway.edges.tallies import BulkHistogram, Distribution

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 5)
ADDED_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
NANOS_PER_USD = 1_000_000_000


class Metrics:
    """Counts what happened; a `gateway.core.ports.Recorder`.

    Args:
        registry: where the metrics live; ``None`` is the process's own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        where: dict[str, Any] = {} if registry is None else {"registry": registry}
        self._requests = Counter("pareta_requests", "Requests answered.", ["route", "status"], **where)
        self._errors = Counter("pareta_errors", "Requests refused or failed, by code.", ["code"], **where)
        self._duration = BulkHistogram(
            "pareta_request_duration_seconds",
            "Time from request to end of answer.",
            ["route"],
            buckets=SECONDS,
            **where,
        )
        self._ttft = BulkHistogram(
            "pareta_time_to_first_token_seconds", "Time to first content (streams).", buckets=SECONDS, **where
        )
        self._gap = BulkHistogram(
            "pareta_inter_token_latency_seconds", "Time between pieces of a stream.", buckets=GAP_SECONDS, **where
        )
        self._added = BulkHistogram(
            "pareta_added_latency_seconds", "Time in the gateway: total minus upstream.", buckets=ADDED_SECONDS, **where
        )
        self._tokens = Counter("pareta_tokens", "Tokens metered.", ["kind"], **where)
        self._charges = Counter("pareta_charges", "Charges confirmed by the credit counter.", **where)
        self._charged = Counter("pareta_charged_usd", "Credit charged.", **where)
        self._shortfall = Counter(
            "pareta_shortfall_usd", "Charges that no credit covered; the platform's loss.", **where
        )
        self._holds = Gauge("pareta_holds_open", "Holds of running requests.", multiprocess_mode="livesum", **where)
        self._connections = Gauge(
            "pareta_client_connections", "Open client connections.", multiprocess_mode="livesum", **where
        )
        self._outbox = Gauge(
            "pareta_outbox_pending",
            "Settlements durable here and not yet confirmed.",
            multiprocess_mode="livesum",
            **where,
        )
        self._unbooked = Gauge(
            "pareta_outbox_unbooked",
            "Settlements that Redis has and the books do not; the journals keep them.",
            multiprocess_mode="livesum",
            **where,
        )
        self._requests_seen: Tally[tuple[str, int]] = Tally()
        self._errors_seen: Tally[str] = Tally()
        self._durations: dict[str, Distribution] = {}
        self._ttfts = Distribution(SECONDS)
        self._gaps = Distribution(GAP_SECONDS)
        self._added_s = Distribution(ADDED_SECONDS)
        self._prompt_tokens = self._completion_tokens = 0
        self._charges_seen = self._charged_nanos = self._shortfall_nanos = 0
        self.relayed = self._gaps.observe
        """To be called with the seconds between two pieces of a stream."""

    def closed(self, exchange: Exchange, now_s: float) -> None:
        """An exchange is over."""
        route = exchange.route
        self._requests_seen[route, exchange.status] += 1
        if exchange.error_code is not None:
            self._errors_seen[exchange.error_code] += 1
        total_s = now_s - exchange.started_s
        durations = self._durations.get(route)
        if durations is None:
            durations = self._durations[route] = Distribution(SECONDS)
        durations.observe(total_s)
        if exchange.first_byte_s is not None:
            self._ttfts.observe(exchange.first_byte_s - exchange.started_s)
        if exchange.upstream_sent_s is not None and exchange.upstream_done_s is not None:
            added_s = total_s - (exchange.upstream_done_s - exchange.upstream_sent_s)
            self._added_s.observe(added_s if added_s > 0 else 0.0)
        usage = exchange.observed.usage if exchange.observed is not None else None
        if usage is not None:
            self._prompt_tokens += usage.prompt
            self._completion_tokens += usage.completion

    def settled(self, charged_nanos: int, shortfall_nanos: int) -> None:
        """A settlement was confirmed."""
        if charged_nanos:
            self._charges_seen += 1
            self._charged_nanos += charged_nanos
        self._shortfall_nanos += shortfall_nanos

    def publish(self) -> None:
        """Show what was counted since the last time."""
        requests, self._requests_seen = self._requests_seen, Tally()
        for (route, status), count in requests.items():
            self._requests.labels(route, str(status)).inc(count)
        failures, self._errors_seen = self._errors_seen, Tally()
        for code, count in failures.items():
            self._errors.labels(code).inc(count)
        for route, durations in self._durations.items():
            self._duration.labels(route).add(durations.take())
        self._ttft.add(self._ttfts.take())
        self._gap.add(self._gaps.take())
        self._added.add(self._added_s.take())
        self._tokens.labels("prompt").inc(self._prompt_tokens)
        self._tokens.labels("completion").inc(self._completion_tokens)
        self._prompt_tokens = self._completion_tokens = 0
        self._charges.inc(self._charges_seen)
        self._charged.inc(self._charged_nanos / NANOS_PER_USD)
        self._shortfall.inc(self._shortfall_nanos / NANOS_PER_USD)
        self._charges_seen = self._charged_nanos = self._shortfall_nanos = 0

    def gauges(self, *, holds: int, connections: int, outbox: int, unbooked: int) -> None:
        """Set what is a level and not a count."""
        self._holds.set(holds)
        self._connections.set(connections)
        self._outbox.set(outbox)
        self._unbooked.set(unbooked)
