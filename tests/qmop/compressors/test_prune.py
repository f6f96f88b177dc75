from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from qmop.compressors.prune import Prune, rescale
from qmop.features import Query, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]


def prune(**options: object) -> Prune:
    return Prune(**{"width": 16, "grid": 6, "tokens": 9, **options})  # type: ignore[arg-type]


def top(score_N: torch.Tensor, count: int) -> list[int]:
    """The `count` best places in raster order, ties to the lower index."""
    best = sorted(range(len(score_N)), key=lambda place: (-score_N[place].item(), place))
    return sorted(best[:count])


def cosines(features: VisualFeatures, query: Query) -> torch.Tensor:
    patches = F.normalize(features.need("text_space_BNE"), dim=-1)
    return (patches @ F.normalize(query.text_BE, dim=-1).unsqueeze(-1)).squeeze(-1)


def test_keeps_the_best_in_raster_order_and_leaves_them_as_they_are(
    make_features: MakeFeatures, make_query: MakeQuery
) -> None:
    features, query = make_features(3), make_query(3)
    importance, relevance = features.need("cls_attention_BN"), cosines(features, query)
    kept = prune()(features, query)
    for row in range(3):
        scales = [(s[row] - s[row].min()) / (s[row].max() - s[row].min()) for s in (importance, relevance)]
        expected = top(0.5 * scales[0] + 0.5 * scales[1], 9)
        assert kept.kept_BM[row].tolist() == expected
        assert torch.equal(kept.tokens_BMC[row], features.patches_BNC[row, expected])


def test_ties_go_to_the_lower_index(make_features: MakeFeatures) -> None:
    features = make_features(1)
    features.cls_attention_BN = torch.zeros(1, 36)
    features.cls_attention_BN[0, [30, 4]] = 1.0
    assert prune(tokens=5, lam=1.0)(features).kept_BM.tolist() == [[0, 1, 2, 4, 30]]


def test_lambda_one_is_importance_alone(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features = make_features(1)
    expected = top(features.need("cls_attention_BN")[0], 9)
    for seed in (1, 2):
        assert prune(lam=1.0)(features, make_query(1, seed=seed)).kept_BM[0].tolist() == expected


def test_lambda_zero_is_relevance_alone(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(1), make_query(1)
    expected = top(cosines(features, query)[0], 9)
    for scale in (1.0, 50.0):
        features.cls_attention_BN = features.need("cls_attention_BN").flip(1) * scale
        assert prune(lam=0.0)(features, query).kept_BM[0].tolist() == expected


def test_a_missing_question_is_refused_except_while_aligning(make_features: MakeFeatures) -> None:
    features = make_features(2)
    with pytest.raises(ValueError, match=r"query is missing, but prune compares.*pass query= to the processor"):
        prune()(features)
    kept = prune().align(features)
    assert [row.tolist() for row in kept.kept_BM] == [top(row, 9) for row in features.need("cls_attention_BN")]


def test_another_question_keeps_other_patches(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features = make_features(1)
    first, second = (prune()(features, make_query(1, seed=seed)).kept_BM for seed in (1, 2))
    assert not torch.equal(first, second)


def test_the_sign_turns_relevance_round(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(1), make_query(1)
    relevance = cosines(features, query)[0]
    assert prune(lam=0.0)(features, query).kept_BM[0].tolist() == top(relevance, 9)
    assert prune(lam=0.0, relevance_sign=-1)(features, query).kept_BM[0].tolist() == top(-relevance, 9)


def test_pictures_of_a_batch_do_not_touch_each_other(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(4), make_query(4)
    features.cls_attention_BN = features.need("cls_attention_BN") * torch.tensor([[1.0], [10.0], [0.01], [3.0]])
    together = prune()(features, query)
    for row in range(4):
        only = torch.tensor([row])
        assert torch.equal(prune()(features.rows(only), query.rows(only)).kept_BM[0], together.kept_BM[row])


def test_rescale_by_picture() -> None:
    score = torch.tensor([[2.0, 4.0, 3.0], [-1.0, -1.0, -1.0], [0.0, 1e-3, 5e-4]])
    expected = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.5]])
    torch.testing.assert_close(rescale(score, "minmax"), expected)
    torch.testing.assert_close(rescale(score, "softmax").sum(1), torch.ones(3))


def test_the_scale_option_is_used(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(1), make_query(1)
    expected = 0.5 * features.need("cls_attention_BN").softmax(1) + 0.5 * cosines(features, query).softmax(1)
    torch.testing.assert_close(prune(scale="softmax").score(features, query), expected)


def test_is_elastic_up_to_the_grid(make_features: MakeFeatures) -> None:
    features = make_features(1)
    assert prune(lam=1.0)(features, tokens=4).tokens_BMC.shape == (1, 4, 16)
    for wrong in (0, 37):
        with pytest.raises(ValueError, match=rf"tokens is {wrong}, but a 6 x 6 grid has 36 patches"):
            prune(lam=1.0)(features, tokens=wrong)


def test_distance_and_cosine_are_different_readings(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(1), make_query(1)
    near = (features.need("text_space_BNE")[0] - query.text_BE[0]).norm(dim=-1)
    found = prune(lam=0.0, measure="distance")(features, query).kept_BM[0].tolist()
    assert found == top(-near, 9)
    assert found != prune(lam=0.0)(features, query).kept_BM[0].tolist()


def test_kept_patches_stand_as_in_the_picture_or_best_first(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    features, query = make_features(2), make_query(2)
    raster, ranked = (prune(order=order)(features, query).kept_BM for order in ("raster", "score"))
    assert torch.equal(ranked.sort(1).values, raster)
    scores = prune().score(features, query).gather(1, ranked)
    assert (scores.diff(dim=1) <= 0).all()
    assert not torch.equal(ranked, raster)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("lam", 1.5, "lam is 1.5.*from 0 to 1"),
        ("scale", "max", "scale is 'max': choose one of minmax, softmax"),
        ("measure", "l3", "measure is 'l3': choose one of cosine, distance"),
        ("order", "random", "order is 'random': choose one of raster, score"),
        ("relevance_sign", 0, "relevance_sign is 0: choose one of 1, -1"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prune(**{option: value})


def test_a_missing_feature_is_named(make_features: MakeFeatures) -> None:
    patches = make_features(1).patches_BNC
    with pytest.raises(ValueError, match=r"features\.cls_attention_BN is missing"):
        prune()(VisualFeatures(patches_BNC=patches, grid=(6, 6)))


def test_by_importance_alone_it_reads_no_question(make_features: MakeFeatures) -> None:
    alone = prune(lam=1.0)
    assert alone.declaration.reads == {"cls_attention"}
    assert not alone.declaration.text_guided
    assert prune().declaration.text_guided
    assert alone(make_features(1)).kept_BM is not None
