from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qmop.compressors.fastv import FastV
from qmop.compressors.registry import list_compressors

MakeFeatures = Callable[..., Any]


def test_it_acts_in_the_language_model_and_reads_nothing_before() -> None:
    declared = list_compressors()["fastv"]
    assert declared.acts == "in_llm"
    assert declared.text_guided
    assert not declared.trained
    assert declared.reads == frozenset()


def test_every_patch_enters_the_language_model(make_features: MakeFeatures) -> None:
    method, features = FastV(width=16, grid=6, tokens=5), make_features(2)
    compressed = method(features)
    assert torch.equal(compressed.tokens_BMC, features.patches_BNC)
    assert compressed.kept_BM.tolist() == [list(range(36))] * 2
    assert method.token_count(5, grid=(6, 6), stage=2) == 36
    assert method.token_count(5, grid=(4, 7), stage=1) == 28


def test_the_most_attended_go_on_in_raster_order() -> None:
    method = FastV(width=16, grid=2, tokens=2)
    attention = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.3, 0.0, 0.65, 0.05]])
    assert method.select(attention).tolist() == [[1, 3], [0, 2]]


def test_equally_attended_ones_go_by_index() -> None:
    assert FastV(width=16, grid=6, tokens=4).select(torch.zeros(1, 36)).tolist() == [[0, 1, 2, 3]]


def test_another_budget_or_no_full_layer_is_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="tokens is 7, but this fastv was built for 5"):
        FastV(width=16, grid=6, tokens=5)(make_features(1), tokens=7)
    with pytest.raises(ValueError, match=r"layer is 0.*choose 1 or more"):
        FastV(width=16, grid=6, tokens=5, layer=0)
    with pytest.raises(ValueError, match="choose 1 to 36"):
        FastV(width=16, grid=6, tokens=37)
