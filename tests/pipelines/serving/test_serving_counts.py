from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from pipelines.serving.counts import Counts, CountsPage


def test_each_count_is_a_sample_with_its_replica() -> None:
    counts = Counts(received=21, answered=1, refused=2, cancelled=3, failed=4, in_flight=11)
    page = CountsPage(lambda: counts, "r1")
    counts.received += 1
    counts.failed += 1
    samples = {
        (sample.name, sample.labels.pop("replica"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.text().decode())
        for sample in family.samples
    }
    assert samples == {
        ("qmop_requests_received_total", "r1"): 22,
        ("qmop_requests_ended_total", "r1", "answered"): 1,
        ("qmop_requests_ended_total", "r1", "refused"): 2,
        ("qmop_requests_ended_total", "r1", "cancelled"): 3,
        ("qmop_requests_ended_total", "r1", "failed"): 5,
        ("qmop_requests_in_flight", "r1"): 11,
    }
