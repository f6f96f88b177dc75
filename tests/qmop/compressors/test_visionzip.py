from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.visionzip import VisionZip, default_contextual, merge
from qmop.features import CompressedTokens, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
ThroughModel = Callable[..., tuple[CompressedTokens, torch.Tensor]]


def visionzip(tokens: int = 10, **options: object) -> VisionZip:
    return VisionZip(width=16, grid=6, tokens=tokens, **options)  # type: ignore[arg-type]


def reference(features: VisualFeatures, tokens: int, contextual: int, *, class_token: bool) -> CompressedTokens:
    """One image, token by token."""
    patches, attention = features.patches_BNC[0], features.need("cls_attention_BN")[0]
    keys = features.need("keys_BNHd")[0].mean(dim=1)
    count = len(patches)
    dominant = tokens - contextual - class_token
    chosen = sorted(sorted(range(count), key=lambda place: (-attention[place].item(), place))[:dominant])
    states: list[Tensor] = [features.need("class_token_BC")[0]] if class_token else []
    states += [patches[place] for place in chosen]
    groups = [-1] * count
    for place, patch in enumerate(chosen):
        groups[patch] = place + class_token
    rest = [place for place in range(count) if place not in chosen]
    anchors = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
    members: list[list[int]] = [[] for _ in anchors]
    for place in rest:
        if place in anchors:
            groups[place] = tokens - contextual + anchors.index(place)
        elif anchors:
            near = [F.cosine_similarity(keys[place], keys[anchor], dim=0).item() for anchor in anchors]
            members[near.index(max(near))].append(place)
            groups[place] = tokens - contextual + near.index(max(near))
    for anchor, group in zip(anchors, members, strict=True):
        states.append(patches[anchor] + (patches[group].mean(0) if group else 0.0))
    kept = [-1] * class_token + chosen + anchors
    return CompressedTokens(
        tokens_BMC=torch.stack(states)[None], kept_BM=torch.tensor([kept]), groups_BN=torch.tensor([groups])
    )


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(
    ("tokens", "contextual"), [(10, None), (10, 0), (10, 1), (10, 3), (10, 9), (36, None), (36, 20), (1, None), (2, 1)]
)
def test_equals_the_slow_reference(
    make_features: MakeFeatures, tokens: int, contextual: int | None, *, class_token: bool
) -> None:
    features = make_features(3)
    zipped = visionzip(tokens, contextual=contextual, class_token=class_token)(features)
    share = default_contextual(tokens) if contextual is None else contextual
    assert zipped.tokens_BMC.shape == (3, tokens, 16)
    for row in range(3):
        slow = reference(features.rows(torch.tensor([row])), tokens, share, class_token=class_token)
        torch.testing.assert_close(zipped.tokens_BMC[row], slow.tokens_BMC[0], rtol=0, atol=1e-5)
        assert torch.equal(zipped.kept_BM[row], slow.kept_BM[0])
        assert torch.equal(zipped.groups_BN[row], slow.groups_BN[0])


@pytest.mark.parametrize(("tokens", "contextual"), [(64, 10), (128, 20), (192, 30), (1, 0), (16, 3), (144, 23)])
def test_the_published_shares_are_the_default(tokens: int, contextual: int) -> None:
    assert default_contextual(tokens) == contextual
    method = VisionZip(width=16, grid=24, tokens=tokens)
    assert method.anchors(tokens) == contextual


@pytest.mark.parametrize(("tokens", "contextual"), [(192, 30), (128, 20), (64, 10)])
def test_the_total_is_dominant_and_contextual_with_the_class_token_inside(
    make_features: MakeFeatures, tokens: int, contextual: int
) -> None:
    features = make_features(1, grid=24)
    zipped = VisionZip(width=16, grid=24, tokens=tokens)(features)
    assert zipped.tokens_BMC.shape == (1, tokens, 16)
    assert torch.equal(zipped.tokens_BMC[:, 0], features.class_token_BC)
    kept = zipped.kept_BM[0].tolist()
    dominant, anchors = kept[1 : tokens - contextual], kept[tokens - contextual :]
    assert kept[0] == -1
    assert dominant == sorted(dominant)
    assert len({*dominant, *anchors}) == tokens - 1
    assert torch.equal(zipped.tokens_BMC[0, 1 : tokens - contextual], features.patches_BNC[0, dominant])
    assert torch.bincount(zipped.groups_BN[0], minlength=tokens).tolist()[0] == 0
    assert int(zipped.groups_BN.min()) > 0


def test_an_anchor_without_a_group_stays_as_it_is_and_ties_go_to_the_first() -> None:
    states = torch.arange(6.0).view(1, 6, 1)
    metric = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [-1.0, 0.0]]])
    merged, groups = merge(states, metric, 3)  # anchors 0, 2, 4; the first two alike
    assert groups.tolist() == [[0, 0, 1, 0, 2, 2]]
    assert merged.flatten().tolist() == [0 + (1 + 3) / 2, 2, 4 + 5]


def test_pictures_of_a_batch_do_not_touch_each_other(make_features: MakeFeatures) -> None:
    features, method = make_features(4), visionzip()
    together = method(features, tokens=12)
    for row in range(4):
        alone = method(features.rows(torch.tensor([row])), tokens=12)
        torch.testing.assert_close(alone.tokens_BMC[0], together.tokens_BMC[row], rtol=0, atol=1e-5)
        assert torch.equal(alone.groups_BN[0], together.groups_BN[row])


def test_half_precision_keeps_what_full_precision_keeps(make_features: MakeFeatures) -> None:
    features = make_features(2)
    half = VisualFeatures(**{name: value for name, value in features.items() if name != "grid"})
    half.patches_BNC, half.class_token_BC = features.patches_BNC.bfloat16(), features.class_token_BC.bfloat16()
    told, expected = visionzip()(half), visionzip()(features)
    assert told.tokens_BMC.dtype == torch.bfloat16
    assert torch.equal(told.kept_BM, expected.kept_BM)
    torch.testing.assert_close(told.tokens_BMC.float(), expected.tokens_BMC, rtol=0, atol=0.03)


def test_a_tower_without_a_class_token_is_not_asked_for_one() -> None:
    assert "class_token" in visionzip().declaration.reads
    assert visionzip(class_token=False).declaration.reads == {"cls_attention", "keys"}
    assert "class_token" in VisionZip.declaration.reads
    assert visionzip().declaration.attention_layer == -2


def test_wrong_inputs_are_named(make_features: MakeFeatures) -> None:
    for wrong in (-1, 10):
        with pytest.raises(
            ValueError, match=rf"contextual is {wrong}, but of 10 tokens.*left out, 2 are.*choose 0 to 9"
        ):
            visionzip(contextual=wrong)
    with pytest.raises(ValueError, match="contextual is 5, but of 4 tokens"):
        visionzip(contextual=5)(make_features(1), tokens=4)
    with pytest.raises(ValueError, match="tokens is 37, but a 6 x 6 grid has 36 patches"):
        visionzip()(make_features(1), tokens=37)
    for field in ("class_token_BC", "keys_BNHd", "cls_attention_BN"):
        features = make_features(1)
        setattr(features, field, None)
        with pytest.raises(ValueError, match=rf"features\.{field} is missing"):
            visionzip()(features)


@pytest.mark.parametrize("class_token", [True, False])
def test_works_in_a_model(through_model: ThroughModel, *, class_token: bool) -> None:
    zipped, logits = through_model("visionzip", 16, class_token=class_token)
    assert zipped.tokens_BMC.shape == (2, 16, 160)
    assert ((zipped.kept_BM == -1).sum(1) == int(class_token)).all()
    assert logits.isfinite().all()
