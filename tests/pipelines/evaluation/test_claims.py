from __future__ import annotations

import json
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
