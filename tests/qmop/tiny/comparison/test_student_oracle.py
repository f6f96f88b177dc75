from __future__ import annotations

import numpy as np
import torch

from qmop.tiny.comparison.material import Pair
from qmop.tiny.comparison.student import pointed
from qmop.tiny.pretraining.world import patch_cells


def pair(picture: int, focus: tuple[int, ...]) -> Pair:
    return Pair(picture=picture, question=np.zeros(1), answer=np.zeros(1), focus=focus)


def test_the_oracle_points_at_a_patch_of_every_asked_for_cell_before_a_second_one() -> None:
    attention = pointed([pair(0, (3, 22)), pair(1, tuple(range(16))), pair(2, ())])
    kept = attention.topk(16, dim=1).indices.numpy()
    cells = patch_cells()[kept]
    assert np.bincount(cells[0], minlength=36)[[3, 22]].tolist() == [4, 4]
    assert sorted(cells[1].tolist()) == list(range(16))


def test_where_nothing_is_asked_for_the_order_is_the_pictures_own() -> None:
    same, other = pointed([pair(7, ()), pair(7, ()), pair(8, ())]), pointed([pair(8, ())])
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    assert torch.equal(same[2], other[0])
