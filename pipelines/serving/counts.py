"""What became of requests, and how Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

ENDS = ("answered", "refused", "cancelled", "failed")


@dataclass(kw_only=True)
class Counts:
    """Requests by what became of them: received = answered + refused + cancelled + failed + in_flight.

    Attributes:
        received: for an answer, once the key was right.
        answered: in full.
        refused: for what they asked, or because the queue was full.
        cancelled: whose client left.
        failed: by a fault of ours.
        in_flight: that have not ended.
    """

    received: int = 0
    answered: int = 0
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    in_flight: int = 0


class CountsPage:
    """Counts in Prometheus' text format.

    Args:
        look: takes the counts.
        replica: the label that tells them from those of other replicas behind the same address.
    """

    def __init__(self, look: Callable[[], Counts], replica: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Families(look, replica))

    def text(self) -> bytes:
        """The counts as they are now."""
        return generate_latest(self._registry)


class _Families(Collector):
    def __init__(self, look: Callable[[], Counts], replica: str) -> None:
        self._look, self._replica = look, replica

    def collect(self) -> Iterator[Metric]:
        counts = self._look()
        received = CounterMetricFamily("qmop_requests_received", "Requests for an answer.", labels=["replica"])
        received.add_metric([self._replica], counts.received)
        ended = CounterMetricFamily("qmop_requests_ended", "Requests by their end.", labels=["replica", "end"])
        for end in ENDS:
            ended.add_metric([self._replica, end], getattr(counts, end))
        running = GaugeMetricFamily("qmop_requests_in_flight", "Requests that have not ended.", labels=["replica"])
        running.add_metric([self._replica], counts.in_flight)
        yield from (received, ended, running)
