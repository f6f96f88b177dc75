from __future__ import annotations

import json
import time
from pathlib import Path

from pipelines.evaluation.claims import Claims


def test_claims_are_kept_alive_and_given_back_at_the_end(tmp_path: Path) -> None:
    with Claims(str(tmp_path), 0.06) as ours, Claims(str(tmp_path), 1000.0) as others:
        assert ours.take("work") == 1
        assert ours.take("work") == 1
        state = tmp_path / "leases" / "work.json"
        while json.loads(state.read_bytes())["beat"] < 3:
            assert others.take("work") is None
        assert ours.holds("work")
        ours.release("work")
        assert others.take("work") == 2
        assert ours.take("more") == 1
    assert json.loads((tmp_path / "leases" / "more.json").read_bytes())["holder"] is None


def test_a_damaged_lease_costs_a_claim_and_no_more(tmp_path: Path) -> None:
    with Claims(str(tmp_path), 0.06) as ours:
        assert ours.take("work") == 1
        assert ours.take("more") == 1
        (tmp_path / "leases" / "work.json").write_bytes(b"{")
        deadline = time.monotonic() + 5.0
        while ours.holds("work"):
            assert time.monotonic() < deadline
        before = json.loads((tmp_path / "leases" / "more.json").read_bytes())["beat"]
        while json.loads((tmp_path / "leases" / "more.json").read_bytes())["beat"] < before + 2:
            assert time.monotonic() < deadline
        assert ours.holds("more")
