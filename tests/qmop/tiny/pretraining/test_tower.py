from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from qmop.tiny.pretraining.tower import Towers, cosine


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    rates = [cosine(step, 100, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.525)
    assert rates[100] == pytest.approx(0.05)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


@torch.no_grad()
def test_both_towers_meet_in_one_space_at_unit_length() -> None:
    torch.manual_seed(0)
    towers = Towers().eval()
    states, last = towers.encode_image(torch.randn(2, 3, 96, 96))
    assert states.shape == last.shape == (2, 145, 128)
    assert not torch.equal(states, last)
    visual, text = towers.project(last), towers.encode_text(["is it red ?", "how many ?"])
    assert visual.shape == (2, 145, 128)
    assert text.shape == (2, 128)
    torch.testing.assert_close(visual.norm(dim=-1), torch.ones(2, 145))
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(2))
