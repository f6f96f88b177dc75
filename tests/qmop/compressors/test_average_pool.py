from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qmop.compressors.average_pool import AveragePool
from qmop.features import VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]


@pytest.mark.parametrize(("tokens", "stride"), [(36, 1), (9, 2), (4, 3), (1, 6)])
def test_tokens_are_the_means_of_windows_in_raster_order(make_features: MakeFeatures, tokens: int, stride: int) -> None:
    features, side = make_features(2), 6 // stride
    pooled = AveragePool(width=16, grid=6, tokens=tokens)(features).tokens_BMC
    maps = features.patches_BNC.view(2, 6, 6, 16)
    for place in range(tokens):
        top, left = place // side * stride, place % side * stride
        mean = maps[:, top : top + stride, left : left + stride].mean(dim=(1, 2))
        torch.testing.assert_close(pooled[:, place], mean, rtol=0, atol=1e-6)


def test_any_fitting_budget_may_be_asked_for(make_features: MakeFeatures) -> None:
    method, features = AveragePool(width=16, grid=6, tokens=9), make_features(1)
    assert torch.equal(
        method(features, tokens=4).tokens_BMC, AveragePool(width=16, grid=6, tokens=4)(features).tokens_BMC
    )
    for wrong in (0, 10):
        with pytest.raises(ValueError, match=rf"tokens is {wrong}.*only into 36, 9, 4, 1 tokens"):
            method(features, tokens=wrong)


def test_a_budget_that_does_not_divide_the_grid_is_refused_when_built() -> None:
    with pytest.raises(ValueError, match=r"tokens is 16.*only into 36, 9, 4, 1 tokens"):
        AveragePool(width=16, grid=6, tokens=16)


def test_has_nothing_to_train() -> None:
    assert not list(AveragePool(width=16, grid=6, tokens=9).parameters())
