"""What has arrived at a worker, as metrics of Ray: they show on its dashboard and where Prometheus collects them."""

from __future__ import annotations

from typing import Protocol

import ray
from ray.util.metrics import Counter, Gauge


class Arrival(Protocol):
    """One micro-batch."""

    @property
    def positions(self) -> list[int]:
        """Global positions."""

    @property
    def images(self) -> list[bytes | None]:
        """Encoded images."""


class Meters:
    """Counts for one worker; does nothing outside Ray."""

    def __init__(self) -> None:
        self._on = ray.is_initialized()
        if self._on:
            self._samples = Counter("qmop_feed_samples", "samples that have arrived at this worker")
            self._bytes = Counter("qmop_feed_image_bytes", "bytes of encoded images that have arrived at this worker")
            self._waited = Counter("qmop_feed_wait_seconds", "seconds that this worker has waited for the feed")
            self._position = Gauge("qmop_feed_position", "global position of the latest sample of this worker")

    def count(self, batch: Arrival, waited_s: float) -> None:
        """Add a micro-batch and the time that it was waited for."""
        if not self._on:
            return
        self._samples.inc(len(batch.positions))
        if size := sum(len(image) for image in batch.images if image is not None):
            self._bytes.inc(size)
        self._waited.inc(max(waited_s, 1e-9))  # a counter refuses zero
        self._position.set(batch.positions[-1])
