from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from qmop.compressors.elastic import ElasticMixture, draw_budget
from qmop.compressors.mixture import ALIGN
from qmop.features import Query, VisualFeatures

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]


def elastic(**options: object) -> ElasticMixture:
    torch.manual_seed(6)
    heads = {"resampler": {"heads": 4, "nested": True}, "window_pool": {"heads": 4, "elastic": True}}
    fixed = {"width": 16, "grid": 6, "tokens": 9, "text_width": 8, "branches": heads}
    return ElasticMixture(**{**fixed, **options}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [9, 4, 1])
def test_any_fitting_budget_up_to_the_built_one(
    make_features: MakeFeatures, make_query: MakeQuery, tokens: int
) -> None:
    kept = elastic()(make_features(3), make_query(3), tokens=tokens)
    assert kept.tokens_BMC.shape == (3, tokens, 16)
    assert kept.branch_weights_BS.shape == (3, 3)


def test_at_the_built_budget_it_is_qmop(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = elastic(select="all"), make_features(2), make_query(2)
    whole = method(features, query)
    parts = torch.stack([branch(features, query).tokens_BMC for branch in method.branches.values()])
    expected = torch.einsum("bs,sbmc->bmc", whole.branch_weights_BS, parts)
    torch.testing.assert_close(whole.tokens_BMC, expected, rtol=0, atol=1e-6)


def test_the_resampler_nests(make_features: MakeFeatures) -> None:
    branch = elastic().branches["resampler"]
    full = branch(make_features(2)).tokens_BMC
    torch.testing.assert_close(branch(make_features(2), tokens=4).tokens_BMC, full[:, :4], rtol=0, atol=1e-6)


def test_the_query_map_is_interpolated() -> None:
    branch = elastic(tokens=36).branches["window_pool"]
    assert branch.query_map(6) is branch.query_MC
    map_1CHW = branch.query_MC.T.unflatten(1, (6, 6)).unsqueeze(0)
    small = F.interpolate(map_1CHW, size=(3, 3), mode="bilinear", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(branch.query_map(3), small)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (16, "can be cut evenly only into 36, 9, 4, 1 tokens"),
        (36, "tokens is 36, but this qmop-elastic was built for at most 9"),
    ],
)
def test_other_budgets_are_refused(make_features: MakeFeatures, make_query: MakeQuery, tokens: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        elastic()(make_features(1), make_query(1), tokens=tokens)


def test_training_draws_each_fitting_budget_alike() -> None:
    method = elastic(tokens=36)
    assert method.training_budgets() == (36, 9, 4)
    drawn = [draw_budget(method, 5, step) for step in range(600)]
    assert drawn == [draw_budget(method, 5, step) for step in range(600)]
    assert drawn != [draw_budget(method, 6, step) for step in range(600)]
    assert all(150 < drawn.count(budget) < 250 for budget in (36, 9, 4))
    assert elastic(tokens=36, stage=ALIGN).training_budgets() == (36,)


def test_budgets_may_be_named() -> None:
    assert elastic(budgets=[4, 1]).training_budgets() == (4, 1)
    with pytest.raises(ValueError, match=r"budgets is \[\]: list budgets of at most 9"):
        elastic(budgets=[])
    with pytest.raises(ValueError, match="built for at most 9"):
        elastic(budgets=[36])


def test_aligning_has_the_built_budget(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match="tokens is 4, but stage 1 shows every branch at 9"):
        elastic(stage=1)(make_features(1), tokens=4)
