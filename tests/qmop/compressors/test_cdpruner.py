from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qmop.compressors.cdpruner import CDPruner, greedy_map, scaled_relevance
from qmop.features import CompressedTokens, Query, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]
ThroughModel = Callable[..., tuple[CompressedTokens, torch.Tensor]]


def cdpruner(tokens: int = 9, **options: object) -> CDPruner:
    return CDPruner(width=16, grid=6, tokens=tokens, **options)  # type: ignore[arg-type]


def cosines(batch: int, patches: int, width: int, seed: int = 0) -> Tensor:
    unit = F.normalize(torch.randn(batch, patches, width, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return unit @ unit.transpose(1, 2)


def weights(batch: int, patches: int, seed: int = 1) -> Tensor:
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)) + 1e-6


def by_determinants(similarity_NN: Tensor, weight_N: Tensor, count: int) -> list[int]:
    """Add the patch with the largest determinant of the whole kernel, again and again."""
    weight = weight_N.double()
    kernel = weight[:, None] * similarity_NN.double() * weight
    chosen: list[int] = []
    for _ in range(count):
        free = [place for place in range(len(kernel)) if place not in chosen]
        gains = [torch.linalg.det(kernel[[*chosen, place]][:, [*chosen, place]]).item() for place in free]
        chosen.append(free[gains.index(max(gains))])
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_choice_is_that_of_explicit_determinants(seed: int) -> None:
    similarity, weight = cosines(2, 10, 12, seed), weights(2, 10, seed + 50)
    chosen = greedy_map(similarity, weight, 6)
    for row in range(2):
        assert chosen[row].tolist() == by_determinants(similarity[row], weight[row], 6)


def test_the_first_pick_is_the_largest_of_the_diagonal() -> None:
    similarity, weight = cosines(8, 30, 12), weights(8, 30)
    diagonal = (weight[:, :, None] * similarity * weight[:, None]).diagonal(dim1=1, dim2=2)
    assert torch.equal(greedy_map(similarity, weight, 1)[:, 0], diagonal.argmax(1))


def test_without_similarity_the_most_relevant_are_picked() -> None:
    weight = weights(3, 40)
    chosen = greedy_map(torch.eye(40).expand(3, -1, -1), weight, 11)
    assert torch.equal(chosen, weight.argsort(dim=1, descending=True)[:, :11])


@pytest.mark.parametrize("width", [1, 3, 8, 64])
def test_nothing_is_picked_twice_when_the_span_is_full(width: int) -> None:
    chosen = greedy_map(cosines(4, 36, width), weights(4, 36), 36)
    assert torch.equal(chosen.sort(dim=1).values, torch.arange(36).expand(4, -1))


def test_rounding_adds_no_direction_to_a_full_span() -> None:
    weight = weights(4, 36)
    chosen = greedy_map(cosines(4, 36, 3), weight, 36)
    for row in range(4):
        first, rest = chosen[row, :3].tolist(), chosen[row, 3:].tolist()
        by_weight = weight[row].argsort(descending=True).tolist()
        assert rest == [place for place in by_weight if place not in first]


def test_copies_come_last_by_their_weight_and_then_their_index() -> None:
    rows = torch.eye(4)[[0, 0, 1, 1, 2, 3, 0]]
    weight = torch.tensor([[0.9, 0.8, 0.7, 0.6, 1e-4, 0.5, 0.8]])
    assert greedy_map((rows @ rows.T)[None], weight, 7).tolist() == [[0, 2, 5, 4, 1, 6, 3]]


def test_zero_tokens_are_picked_last_and_do_no_harm() -> None:
    unit = F.normalize(torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    unit[0, [0, 3]] = 0.0
    chosen = greedy_map(unit @ unit.transpose(1, 2), torch.ones(1, 6), 6)[0].tolist()
    assert sorted(chosen) == list(range(6))
    assert chosen[4:] == [0, 3]


def test_tiny_weights_do_not_drown_in_rounding() -> None:
    similarity, weight = cosines(1, 14, 16, 4), torch.logspace(0, -6, 14)[None]
    expected = by_determinants(similarity[0], weight[0], 14)
    assert greedy_map(similarity, weight, 14)[0].tolist() == expected


def test_relevance_is_the_negated_cosine_stretched_by_picture(
    make_features: MakeFeatures, make_query: MakeQuery
) -> None:
    patches, text = make_features(3).need("text_space_BNE"), make_query(3).text_BE
    relevance = scaled_relevance(patches * torch.tensor([1.0, 5.0, 0.1])[:, None, None], text)
    for row in range(3):
        cosine = [F.cosine_similarity(patch, text[row], dim=0).item() for patch in patches[row]]
        low, high = min(-c for c in cosine), max(-c for c in cosine)
        expected = torch.tensor([(-c - low + 1e-6) / (high - low) for c in cosine])
        torch.testing.assert_close(relevance[row], expected, rtol=0, atol=1e-5)
    assert (relevance > 0).all()


def test_equal_relevance_counts_as_one() -> None:
    relevance = scaled_relevance(torch.ones(1, 5, 4), torch.randn(1, 4))
    torch.testing.assert_close(relevance, torch.ones(1, 5))


@pytest.mark.parametrize("theta", [None, 0.0, 0.5, 0.9])
def test_the_kept_are_those_of_the_kernel_in_raster_order(
    make_features: MakeFeatures, make_query: MakeQuery, theta: float | None
) -> None:
    features, query = make_features(2), make_query(2)
    kept = cdpruner(7, theta=theta)(features, query)
    relevance = scaled_relevance(features.need("text_space_BNE"), query.text_BE)
    weight = relevance if theta is None else (theta / (2 * (1 - theta)) * relevance.double()).exp()
    unit = F.normalize(features.patches_BNC, dim=-1)
    for row in range(2):
        expected = sorted(by_determinants(unit[row] @ unit[row].T, weight[row], 7))
        assert kept.kept_BM[row].tolist() == expected
        assert torch.equal(kept.tokens_BMC[row], features.patches_BNC[row, expected])


def test_theta_weighs_relevance(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(1), make_query(1)
    relevance = scaled_relevance(features.need("text_space_BNE"), query.text_BE)
    most_relevant = sorted(relevance[0].argsort(descending=True)[:9].tolist())
    kept = {theta: cdpruner(theta=theta)(features, query).kept_BM for theta in (0.0, 0.99, 1 - 1e-9)}
    assert kept[0.99].tolist() == [most_relevant]
    assert torch.equal(kept[0.0], cdpruner().align(features).kept_BM)
    assert len(set(kept[1 - 1e-9][0].tolist())) == 9


def test_another_question_keeps_other_patches(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features = make_features(1)
    first, second = (cdpruner()(features, make_query(1, seed=seed)).kept_BM for seed in (1, 2))
    assert not torch.equal(first, second)


def test_pictures_of_a_batch_do_not_touch_each_other(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(4), make_query(4)
    features.text_space_BNE = features.need("text_space_BNE") + 3 * torch.randn(4, 1, 8)
    together = cdpruner()(features, query, tokens=12)
    for row in range(4):
        only = torch.tensor([row])
        alone = cdpruner()(features.rows(only), query.rows(only), tokens=12)
        assert torch.equal(alone.kept_BM[0], together.kept_BM[row])


def test_the_whole_picture_is_kept_at_the_largest_budget(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features = make_features(2)
    assert torch.equal(cdpruner(36)(features, make_query(2)).tokens_BMC, features.patches_BNC)


def test_half_precision_and_autocast_choose_in_single(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(2), make_query(2)
    features.patches_BNC += 9.0  # cosines near one, where half precision has no digits left
    expected = cdpruner()(features, query).kept_BM
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cdpruner()(features, query).kept_BM, expected)
    features.patches_BNC = features.patches_BNC.bfloat16()
    kept = cdpruner()(features, query)
    assert kept.tokens_BMC.dtype == torch.bfloat16
    assert all(len(set(row.tolist())) == 9 for row in kept.kept_BM)


def test_gradients_reach_the_kept_tokens_alone(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features = make_features(1)
    features.patches_BNC.requires_grad_()
    kept = cdpruner()(features, make_query(1))
    kept.tokens_BMC.sum().backward()
    gradient = features.patches_BNC.grad
    assert gradient is not None
    assert (gradient[0].amax(1) > 0).nonzero().flatten().tolist() == kept.kept_BM[0].tolist()


def test_reads_patches_of_the_layer_before_the_last_and_connected_tokens() -> None:
    stated = CDPruner.declaration
    assert (stated.text_layer, stated.text_norm, stated.readout) == (-2, True, "connector_first")
    assert stated.reads == {"text_space", "query"}
    assert stated.text_guided


def test_wrong_inputs_are_named(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features = make_features(1)
    with pytest.raises(ValueError, match="query is missing, but cdpruner selects patches by the question: pass query="):
        cdpruner()(features)
    with pytest.raises(ValueError, match="tokens is 37, but a 6 x 6 grid has 36 patches"):
        cdpruner()(features, make_query(1), tokens=37)
    for wrong in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=rf"theta is {wrong}, but.*choose 0 to below 1"):
            cdpruner(theta=wrong)
    features.text_space_BNE = None
    with pytest.raises(ValueError, match=r"features\.text_space_BNE is missing"):
        cdpruner()(features, make_query(1))


def test_works_in_a_model(through_model: ThroughModel) -> None:
    kept, logits = through_model("cdpruner", 16)
    assert kept.tokens_BMC.shape == (2, 16, 160)
    assert all(len(set(row.tolist())) == 16 for row in kept.kept_BM)
    assert logits.isfinite().all()
