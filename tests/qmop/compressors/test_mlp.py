from __future__ import annotations

from collections.abc import Callable

import pytest

from qmop.compressors.mlp import Identity
from qmop.features import VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]


def test_every_patch_goes_through_unchanged(make_features: MakeFeatures) -> None:
    features = make_features(2)
    assert Identity(width=16, grid=6, tokens=36)(features).tokens_BMC is features.patches_BNC


def test_fewer_tokens_than_patches_are_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="tokens is 9, but this mlp was built for 36"):
        Identity(width=16, grid=6, tokens=9)
    with pytest.raises(ValueError, match="tokens is 9, but this mlp was built for 36"):
        Identity(width=16, grid=6, tokens=36)(make_features(1), tokens=9)
