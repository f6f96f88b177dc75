from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qmop.vtcbench.shrinking import factor_of, shrink_suite, shrunk
from qmop.vtcbench.suite import load_suite, read_shard, write_suite


def test_detail_below_the_factor_is_lost_and_larger_stays() -> None:
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    halves = np.zeros((96, 96, 3), np.uint8)
    halves[:, :48] = 255

    fine = np.asarray(shrunk(Image.fromarray(stripes), 3))
    coarse = np.asarray(shrunk(Image.fromarray(halves), 3)).astype(int)

    assert np.ptp(fine[8:-8, 8:-8].astype(int)) < 140
    assert coarse[48, 8, 0] > 250
    assert coarse[48, 88, 0] < 5


@pytest.mark.parametrize(("size", "factor"), [((97, 50), 3.0), ((5, 4), 10.0), ((640, 480), 2.5)])
def test_the_size_comes_back(size: tuple[int, int], factor: float) -> None:
    assert shrunk(Image.new("L", size), factor).size == size


def test_the_factor_leaves_the_compressors_share() -> None:
    assert [factor_of(144, tokens) for tokens in (144, 36, 16, 9, 4)] == [1, 2, 3, 4, 6]
    for wrong in (0, 145):
        with pytest.raises(ValueError, match="between 1 and the 144 patches"):
            factor_of(144, wrong)


def test_a_shrunk_suite_has_the_same_items_with_other_pictures(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "full", seed=0, count=20, items_per_shard=15)
    home = tmp_path / "small"
    home.mkdir()
    shards = [read_shard(suite.folder, shard) for shard in suite.shards]
    small = shrink_suite(
        suite, shards, 3.0, lambda name, data: (home / name).write_bytes(data) and None, folder=str(home)
    )
    found = [rendered for shard in small.shards for rendered in read_shard(home, shard)]
    before = [rendered for shard in shards for rendered in shard]

    assert load_suite(home) == small
    assert small.digest != suite.digest
    assert [shard.count for shard in small.shards] == [15, 5]
    assert [rendered.item for rendered in found] == [rendered.item for rendered in before]
    with Image.open(io.BytesIO(before[0].image)) as old, Image.open(io.BytesIO(found[0].image)) as new:
        assert list(new.getdata()) == list(shrunk(old, 3.0).getdata())
    with pytest.raises(ValueError, match="factor is 1, but it must be above 1"):
        shrink_suite(suite, shards, 1.0, lambda *_: None, folder="f")
