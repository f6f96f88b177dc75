from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.prumerge import PruMerge, adaptive_choice, fixed_choice
from qmop.compressors.selection import rank
from qmop.features import CompressedTokens, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
ThroughModel = Callable[..., tuple[CompressedTokens, torch.Tensor]]


def prumerge(tokens: int = 10, **options: object) -> PruMerge:
    return PruMerge(**{"width": 16, "grid": 6, "tokens": tokens, "neighbours": 5, **options})  # type: ignore[arg-type]


def by_attention(attention_N: Tensor) -> list[int]:
    return sorted(range(len(attention_N)), key=lambda place: (-attention_N[place].item(), place))


def outliers(attention_N: Tensor) -> int:
    low, high = np.percentile(attention_N.numpy(), [25, 75])
    return int((attention_N.numpy() > high + 1.5 * (high - low)).sum())


def reference_kept(attention_N: Tensor, tokens: int, mode: str, *, plus: bool) -> list[int]:
    """Kept patches of one image in published order: the top ones by attention, then the uniform ones."""
    order, patches, count = by_attention(attention_N), len(attention_N), tokens - 1
    if mode == "adaptive":
        found = outliers(attention_N)
        step = max(1, int(int(patches / max(1, found)) / 3))
        spaced = list(range(0, patches - 1, step)) if plus else []
        kept = order[:found] + [place for place in spaced if place not in order[:found]]
        if len(kept) <= count:
            return kept
    number = count // 2 if plus else 0
    spaced = [int((place + 0.5) * patches / number) for place in range(number)]
    top = next(cut for cut in range(patches + 1) if len({*order[:cut], *spaced}) >= count)
    return order[:top] + [place for place in spaced if place not in order[:top]]


def reference(features: VisualFeatures, kept: list[int], neighbours: int = 5) -> Tensor:
    """The tokens of one image, one by one."""
    patches, attention = features.patches_BNC[0], features.need("cls_attention_BN")[0]
    keys = features.need("keys_BNHd")[0].flatten(1)
    tokens = []
    for place in kept:
        others = [other for other in range(len(patches)) if other != place]
        near = sorted(others, key=lambda other: -F.cosine_similarity(keys[place], keys[other], dim=0).item())
        tokens.append(patches[place] + sum(attention[other] * patches[other] for other in near[:neighbours]))
    rest = [other for other in range(len(patches)) if other not in kept]
    tokens.append(sum((attention[other] * patches[other] for other in rest), torch.zeros(patches.shape[1])))
    return torch.stack(tokens)


@pytest.fixture
def peaked(make_features: MakeFeatures) -> VisualFeatures:
    """Pictures with none, one, three and nine outliers of attention, in large numbers so that merging shows."""
    features = make_features(4)
    attention = torch.rand(4, 36, generator=torch.Generator().manual_seed(9)) * 0.1 + 0.1
    for row, many in enumerate((0, 1, 3, 8)):
        places = torch.randperm(36, generator=torch.Generator().manual_seed(row))[:many]
        attention[row, places] = torch.linspace(1.0, 2.0, many)
    features.cls_attention_BN = attention
    assert [outliers(row) for row in attention] == [0, 1, 3, 8]
    return features


@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("order", ["attention", "raster"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 12, 22, 36])  # 12 holds the third picture with nothing to spare
def test_equals_the_slow_reference(peaked: VisualFeatures, mode: str, order: str, tokens: int, *, plus: bool) -> None:
    merged = prumerge(tokens, mode=mode, plus=plus, order=order)(peaked)
    assert merged.tokens_BMC.shape == (4, tokens, 16)
    for row, own in enumerate(merged.per_image()):
        kept = reference_kept(peaked.need("cls_attention_BN")[row], tokens, mode, plus=plus)
        kept = sorted(kept) if order == "raster" else kept
        assert len(set(kept)) == len(kept)
        assert merged.kept_BM[row].tolist() == kept + [-1] * (tokens - len(kept))
        torch.testing.assert_close(own, reference(peaked.rows(torch.tensor([row])), kept), rtol=0, atol=1e-4)
        groups = [kept.index(place) if place in kept else len(kept) for place in range(36)]
        assert merged.groups_BN[row].tolist() == groups
    if mode == "fixed":
        assert merged.mask_BM is None


@pytest.mark.parametrize("plus", [False, True])
def test_adaptive_pictures_are_padded_behind_with_zeros(peaked: VisualFeatures, *, plus: bool) -> None:
    merged = prumerge(36, mode="adaptive", plus=plus)(peaked)
    # With plus, steps of 12, 12, 4 and 1 leave 3, 3, 9 and 35 uniform places, some of them outliers as well.
    counts = [len(reference_kept(row, 36, "adaptive", plus=plus)) + 1 for row in peaked.need("cls_attention_BN")]
    assert counts == ([4, 5, 12, 36] if plus else [1, 2, 4, 9])
    assert merged.counts_B.tolist() == counts
    assert merged.mask_BM.tolist() == [[place < count for place in range(36)] for count in counts]
    assert not merged.tokens_BMC[~merged.mask_BM].any()


def test_the_published_fixed_choice_is_72_top_and_every_eighth_patch() -> None:
    attention = torch.rand(2, 576, generator=torch.Generator().manual_seed(0))
    attention[0, 4::8] = 0.0  # no top patch at a uniform place: published code keeps 144 different ones
    choice = fixed_choice(rank(attention), 144, plus=True)
    assert choice.spaced_BN[0].nonzero().flatten().tolist() == list(range(4, 576, 8))
    assert choice.top_BN[0].nonzero().flatten().tolist() == sorted(by_attention(attention[0])[:72])
    assert choice.kept_BN.sum(1).tolist() == [144, 144]


def test_the_published_fixed_mode_is_144_tokens_and_an_extra_one(make_features: MakeFeatures) -> None:
    features = make_features(2, grid=24)
    method = PruMerge(width=16, grid=24, tokens=145, plus=True)
    merged = method(features)
    assert method.token_count(145, grid=(24, 24), stage=2) == 145
    assert merged.tokens_BMC.shape == (2, 145, 16)
    for row, attention in zip(merged.kept_BM.tolist(), features.need("cls_attention_BN"), strict=True):
        assert row[-1] == -1
        assert row[:72] == by_attention(attention)[:72]
        assert set(range(4, 576, 8)) <= set(row)
        assert len(set(row[:-1])) == 144


def test_outliers_are_counted_by_picture_above_the_fence() -> None:
    attention = torch.rand(5, 576, generator=torch.Generator().manual_seed(1)).pow(6)
    choice = adaptive_choice(attention, rank(attention), plus=False)
    assert choice.kept_BN.sum(1).tolist() == [outliers(row) for row in attention]
    assert not choice.spaced_BN.any()


def test_the_adaptive_places_are_the_published_ones() -> None:
    attention = torch.linspace(0.4, 0.6, 576)[None].clone()
    attention[0, 540:572] = 9.0
    choice = adaptive_choice(attention, rank(attention), plus=True)
    assert int(choice.top_BN.sum()) == 32
    assert choice.spaced_BN[0].nonzero().flatten().tolist() == list(range(0, 575, 6))  # int(576 / 32) // 3


def test_the_adaptive_places_stop_short_of_the_last_patch() -> None:
    attention = torch.linspace(0.4, 0.6, 36)[None].clone()
    attention[0, :8] = 9.0
    choice = adaptive_choice(attention, rank(attention), plus=True)
    assert choice.spaced_BN[0].nonzero().flatten().tolist() == list(range(35))


@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
def test_a_single_patch_becomes_the_extra_token(make_features: MakeFeatures, mode: str) -> None:
    features = make_features(2, grid=1)
    merged = prumerge(1, grid=1, mode=mode, plus=True)(features)
    torch.testing.assert_close(
        merged.tokens_BMC, features.need("cls_attention_BN").unsqueeze(-1) * features.patches_BNC
    )


def test_constant_attention_leaves_the_extra_token_alone(make_features: MakeFeatures) -> None:
    features = make_features(1)
    features.cls_attention_BN = torch.full((1, 36), 1 / 36)
    merged = prumerge(mode="adaptive")(features)
    assert merged.counts_B.tolist() == [1]
    torch.testing.assert_close(merged.tokens_BMC[:, 0], features.patches_BNC.mean(1), rtol=0, atol=1e-5)


def test_neighbours_are_other_patches_and_never_more_than_there_are(make_features: MakeFeatures) -> None:
    features = make_features(1)
    attention = features.need("cls_attention_BN")
    merged = prumerge(4, neighbours=100)(features)
    everything = (attention.unsqueeze(-1) * features.patches_BNC).sum(1)
    for token, place in zip(merged.tokens_BMC[0, :3], merged.kept_BM[0, :3].tolist(), strict=True):
        own = features.patches_BNC[0, place]
        torch.testing.assert_close(token, own + everything[0] - attention[0, place] * own, rtol=0, atol=1e-5)
    alone = prumerge(4, neighbours=0)(features)
    assert torch.equal(alone.tokens_BMC[0, :3], features.patches_BNC[0, alone.kept_BM[0, :3]])
    assert PruMerge(width=16, grid=24, tokens=145).neighbours == 32


@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
def test_pictures_of_a_batch_do_not_touch_each_other(peaked: VisualFeatures, mode: str) -> None:
    method = prumerge(mode=mode, plus=True)
    together = method(peaked, tokens=13)
    for row in range(4):
        alone = method(peaked.rows(torch.tensor([row])), tokens=13)
        torch.testing.assert_close(alone.tokens_BMC[0], together.tokens_BMC[row], rtol=0, atol=1e-5)
        assert torch.equal(alone.kept_BM[0], together.kept_BM[row])


def test_half_precision_keeps_what_full_precision_keeps(peaked: VisualFeatures) -> None:
    expected = prumerge()(peaked)
    peaked.patches_BNC = peaked.patches_BNC.bfloat16()
    told = prumerge()(peaked)
    assert told.tokens_BMC.dtype == torch.bfloat16
    assert torch.equal(told.kept_BM, expected.kept_BM)
    torch.testing.assert_close(told.tokens_BMC.float(), expected.tokens_BMC, rtol=0.02, atol=0.05)


def test_reads_the_last_block_with_its_heads_together() -> None:
    stated = PruMerge.declaration
    assert (stated.attention_layer, stated.split_heads, stated.reads) == (-1, False, {"cls_attention", "keys"})
    assert stated.fixed_count
    assert prumerge().declaration.fixed_count
    assert not prumerge(mode="adaptive").declaration.fixed_count


def test_wrong_inputs_are_named(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="mode is 'free': choose one of fixed, adaptive"):
        prumerge(mode="free")
    with pytest.raises(ValueError, match="order is 'up': choose one of attention, raster"):
        prumerge(order="up")
    with pytest.raises(ValueError, match="neighbours is -1, but it is a number of patches: choose 0 or more"):
        prumerge(neighbours=-1)
    with pytest.raises(ValueError, match="tokens is 37, but a 6 x 6 grid has 36 patches"):
        prumerge()(make_features(1), tokens=37)
    for field in ("keys_BNHd", "cls_attention_BN"):
        features = make_features(1)
        setattr(features, field, None)
        with pytest.raises(ValueError, match=rf"features\.{field} is missing"):
            prumerge()(features)


@pytest.mark.parametrize("mode", ["fixed", "adaptive"])
def test_works_in_a_model(through_model: ThroughModel, mode: str) -> None:
    merged, logits = through_model("prumerge", 16, mode=mode, plus=True)
    assert merged.tokens_BMC.shape == (2, 16, 160)
    assert (merged.counts_B <= 16).all()
    assert logits.isfinite().all()
