"""Long repetition over the renderer: every answer is right, every picture the same when drawn again.

Seeded and resumable: finished seeds are listed in runs/soak/renderer-*.txt and skipped; delete the file to start over.
A renderer that draws otherwise has a list of its own.
"""

import hashlib
from pathlib import Path

import pytest

from qmop.vtcbench.rendered import suite, suite_digest
from qmop.vtcbench.suite import probe_digest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

SEEDS, ITEMS = range(10_000, 10_100), 200
DONE = Path(f"runs/soak/renderer-{probe_digest(0)[:8]}.txt")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_suite_drawn_twice_is_the_same_suite(seed: int) -> None:
    DONE.parent.mkdir(parents=True, exist_ok=True)
    finished = DONE.read_text().split() if DONE.exists() else []
    if any(line.startswith(f"{seed}:") for line in finished):
        pytest.skip("finished in an earlier run")
    first, again = list(suite(seed, ITEMS)), list(suite(seed, ITEMS))
    assert suite_digest(first) == suite_digest(again)
    assert len({hashlib.sha256(rendered.image).digest() for rendered in first}) == ITEMS
    with DONE.open("a") as record:
        record.write(f"{seed}:{suite_digest(first)}\n")
