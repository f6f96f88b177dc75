from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qmop.compressors.blind import Blind
from qmop.features import VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]


def test_every_picture_gets_the_same_tokens(make_features: MakeFeatures) -> None:
    method = Blind(width=16, grid=6, tokens=3)
    first, second = (method(make_features(2, seed=seed)).tokens_BMC for seed in (0, 1))
    assert first.shape == (2, 3, 16)
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[1])


def test_no_gradient_reaches_the_picture(make_features: MakeFeatures) -> None:
    features, method = make_features(2), Blind(width=16, grid=6, tokens=3)
    features.patches_BNC.requires_grad_()
    method(features).tokens_BMC.sum().backward()
    assert features.patches_BNC.grad is None
    assert method.token_MC.grad is not None
    assert torch.equal(method.token_MC.grad, torch.full((3, 16), 2.0))


def test_another_budget_is_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="tokens is 4, but this blind was built for 3"):
        Blind(width=16, grid=6, tokens=3)(make_features(1), tokens=4)
