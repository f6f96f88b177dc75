"""Pictures and inputs for the tests of the model library."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image

QUESTIONS = ["what colour is the circle ?", "how many red objects are there ?", "which texture has the background ?"]


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pictures() -> Callable[[int], list[Image.Image]]:
    """`pictures(n)`: different noise, 96 x 96."""

    def build(count: int) -> list[Image.Image]:
        draw = np.random.default_rng(5)
        return [Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(count)]

    return build
