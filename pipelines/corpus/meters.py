"""What has arrived at a worker, as metrics of Ray: they show on its dashboard and where Prometheus collects them."""

from __future__ import annotations

import ray
from ray.util.metrics import Counter, Gauge


class Meters:
    """Counts for one worker; does nothing outside Ray."""

    def __init__(self) -> None:
        self._on = ray.is_initialized()
        if self._on:
            self._samples = Counter("qmop_feed_samples", "samples that have arrived at this worker")
            self._bytes = Counter("qmop_feed_image_bytes", "bytes of encoded images that have arrived at this worker")
            self._waited = Counter("qmop_feed_wait_seconds", "seconds that this worker has waited for the feed")
            self._position = Gauge("qmop_feed_position", "global position of the latest sample of this worker")

    def count(self, *, samples: int, image_bytes: int, position: int, waited_s: float) -> None:
        """Add a micro-batch.

        Args:
            samples: in it.
            image_bytes: of their encoded images.
            position: of its last sample.
            waited_s: how long it was waited for.
        """
        if not self._on:
            return
        self._samples.inc(samples)
        if image_bytes:  # a counter refuses zero
            self._bytes.inc(image_bytes)
        self._waited.inc(max(waited_s, 1e-9))
        self._position.set(position)
