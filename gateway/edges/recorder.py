"""The recorder that the hot path talks to: metrics and the request log as one.

Floor: edge.
"""

from __future__ import annotations

from gateway.core.exchange import Exchange
from gateway.edges.metrics import Metrics
from gateway.edges.request_log import RequestLog


class EdgeRecorder:
    """Hands every note to both; a `gateway.core.ports.Recorder`."""

    def __init__(self, metrics: Metrics, request_log: RequestLog) -> None:
        self._metrics = metrics
        self._request_log = request_log
        self.relayed = metrics.relayed

    def closed(self, exchange: Exchange, now_s: float) -> None:
        """An exchange is over."""
        self._metrics.closed(exchange, now_s)
        self._request_log.closed(exchange, now_s)
