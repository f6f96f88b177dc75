"""Made-up evaluations whose true figures are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qmop.cost import Cost
from qmop.profiler import STAGES, Profile, Timing
from qmop.vtcbench.records import Record, judge
from qmop.vtcbench.rendered import RenderedItem, suite

Answerer = Callable[[str, dict[str, float]], list[Record]]


@pytest.fixture(scope="session")
def small_suite() -> list[RenderedItem]:
    """Forty items of seed 0."""
    return list(suite(0, 40))


@pytest.fixture
def answered(small_suite: list[RenderedItem]) -> Callable[..., list[Record]]:
    """Records of one label that answers every item, right on those for which `knows(position)` holds."""

    def build(label: str, knows: Callable[[int], bool], *, budget: int = 16, **facts: object) -> list[Record]:
        fixed = {
            "checkpoint": f"digest-of-{label}",
            "label": label,
            "method": label.split("@", maxsplit=1)[0],
            "budget": budget,
            "visual_tokens": budget,
            "suite_digest": "suite-digest",
            "shard": "suite-000000.tar",
        }
        return [
            judge(r.item, r.item.answers[0] if knows(i) else _wrong(r), **{**fixed, **facts})
            for i, r in enumerate(small_suite)
        ]

    return build


@pytest.fixture
def evaluation(answered: Callable[..., list[Record]]) -> list[Record]:
    """An uncompressed row, a blind one and two compressed ones, of which one has a router."""
    draw = np.random.default_rng(0).random(40)
    return [
        *answered("blind", lambda i: i % 5 == 0, budget=0),
        *answered("qmop@16", lambda i: draw[i] < 0.7, branch_weights=(0.5, 0.3, 0.2)),
        *answered("average_pool@16", lambda i: draw[i] < 0.5),
        *answered("uncompressed", lambda i: i % 10 != 9, budget=144),
    ]


@pytest.fixture
def cost() -> Cost:
    """Of round figures."""
    return Cost(
        method="m",
        visual_tokens=16,
        parameters=10,
        vision=100,
        reading=1_000_000_000,
        question=7,
        projector=500_000_000,
        language=22_000_000_000,
        kv_bytes=8_400_000,
    )


@pytest.fixture
def measured() -> Profile:
    """Of a batch of eight: prefill takes 12 ms, every other stage 4."""
    slow, fast = Timing(median=12.0, low=11.0, high=13.0), Timing(median=4.0, low=3.0, high=5.0)
    return Profile(
        stages={name: slow if name == "prefill" else fast for name in STAGES},
        device="a device",
        images=8,
        rows=8,
        prompt_tokens=30,
        rounds=5,
        weights_bytes=1,
        peak_bytes=1,
    )


def _wrong(rendered: RenderedItem) -> str:
    return next(choice for choice in rendered.item.choices if choice not in rendered.item.answers)
