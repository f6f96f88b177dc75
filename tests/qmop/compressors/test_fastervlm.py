from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qmop.compressors import list_compressors
from qmop.compressors.fastervlm import FasterVLM
from qmop.features import CompressedTokens, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
ThroughModel = Callable[..., tuple[CompressedTokens, torch.Tensor]]


def expected(attention_N: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(attention_N)), key=lambda place: (-attention_N[place].item(), place))[:count])


@pytest.mark.parametrize("tokens", [1, 7, 35, 36])
def test_keeps_the_most_attended_in_raster_order(make_features: MakeFeatures, tokens: int) -> None:
    features = make_features(3)
    kept = FasterVLM(width=16, grid=6, tokens=tokens)(features)
    for row, attention in enumerate(features.need("cls_attention_BN")):
        places = expected(attention, tokens)
        assert kept.kept_BM[row].tolist() == places
        assert torch.equal(kept.tokens_BMC[row], features.patches_BNC[row, places])


def test_reads_the_block_that_made_the_patches_head_by_head() -> None:
    stated = list_compressors()["fastervlm"]
    assert (stated.attention_layer, stated.split_heads, stated.reads) == (-2, True, {"cls_attention"})
    assert stated.elastic
    assert not stated.trained


def test_half_precision_breaks_ties_by_index(make_features: MakeFeatures) -> None:
    features = make_features(1)
    features.patches_BNC = features.patches_BNC.bfloat16()
    features.cls_attention_BN = torch.full((1, 36), 0.5, dtype=torch.bfloat16)
    kept = FasterVLM(width=16, grid=6, tokens=4)(features)
    assert kept.kept_BM.tolist() == [[0, 1, 2, 3]]
    assert kept.tokens_BMC.dtype == torch.bfloat16


def test_pictures_of_a_batch_do_not_touch_each_other(make_features: MakeFeatures) -> None:
    features, method = make_features(3), FasterVLM(width=16, grid=6, tokens=9)
    together = method(features, tokens=5)
    for row in range(3):
        assert torch.equal(method(features.rows(torch.tensor([row])), tokens=5).kept_BM[0], together.kept_BM[row])


def test_wrong_inputs_are_named(make_features: MakeFeatures) -> None:
    features = make_features(1)
    with pytest.raises(ValueError, match="tokens is 37, but a 6 x 6 grid has 36 patches"):
        FasterVLM(width=16, grid=6, tokens=9)(features, tokens=37)
    features.cls_attention_BN = None
    with pytest.raises(ValueError, match=r"features\.cls_attention_BN is missing"):
        FasterVLM(width=16, grid=6, tokens=9)(features)


def test_works_in_a_model(through_model: ThroughModel) -> None:
    kept, logits = through_model("fastervlm", 16)
    assert kept.tokens_BMC.shape == (2, 16, 160)
    assert not torch.equal(kept.kept_BM[0], kept.kept_BM[1])
    assert logits.isfinite().all()
