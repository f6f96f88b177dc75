from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qmop.compressors.mixture import ALIGN, BRANCHES, TUNE, Mixture
from qmop.features import Query, VisualFeatures
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_config

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]


def mixture(**options: object) -> Mixture:
    """A mixture whose router tells pictures apart, so that every pair of branches is chosen by some."""
    torch.manual_seed(6)
    four = {"heads": 4}
    fixed = {"width": 16, "grid": 6, "tokens": 9, "text_width": 8, "branches": {"resampler": four, "window_pool": four}}
    method = Mixture(**{**fixed, **options}).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        method.router.leave.weight.mul_(10)
    return method


def each_branch(method: Mixture, features: VisualFeatures, query: Query | None) -> list[Tensor]:
    return [method.branches[name](features, query).tokens_BMC for name in BRANCHES]


def test_aligning_shows_all_branches_side_by_side(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features = mixture(stage=ALIGN), make_features(2)
    shown = method(features)
    assert shown.tokens_BMC.shape == (2, 27, 16)
    parts = [method.branches[name].align(features).tokens_BMC for name in BRANCHES]
    assert torch.equal(shown.tokens_BMC, torch.cat(parts, dim=1))
    assert shown.branch_weights_BS is None
    assert torch.equal(method(features, make_query(2)).tokens_BMC, shown.tokens_BMC)  # the question leaks nowhere


def test_the_branches_stand_in_the_papers_order() -> None:
    assert BRANCHES == ("resampler", "window_pool", "prune")
    assert list(mixture().branches) == list(BRANCHES)


def test_the_number_of_tokens_is_known_for_both_stages() -> None:
    assert mixture().token_count(16, grid=(12, 12), stage=ALIGN) == 48
    assert mixture().token_count(16, grid=(12, 12), stage=TUNE) == 16


@pytest.mark.parametrize("training", [True, False], ids=["training", "all-in-evaluation"])
def test_dense_fusion_is_the_weighted_sum(
    make_features: MakeFeatures, make_query: MakeQuery, *, training: bool
) -> None:
    method, features, query = mixture(select="all").train(training), make_features(3), make_query(3)
    fused = method(features, query)
    weights = method.router(features.need("summary_BC"), query.text_BE)
    parts = each_branch(method, features, query)
    for row in range(3):
        by_hand = sum(weights[row, place] * parts[place][row] for place in range(3))
        torch.testing.assert_close(fused.tokens_BMC[row], by_hand, rtol=0, atol=1e-6)
    torch.testing.assert_close(fused.branch_weights_BS, weights)
    assert fused.tokens_BMC.shape == (3, 9, 16)


def test_training_runs_every_branch_whatever_is_selected(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method = mixture(select="top_k", top_k=1).train()
    weights = method(make_features(4), make_query(4)).branch_weights_BS
    assert (weights > 0).all()


def watch(method: Mixture) -> dict[str, list[Tensor]]:
    """The pictures that each branch gets, call by call."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    for name, branch in method.branches.items():
        branch.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].patches_BNC))
    return seen


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_only_the_strongest_branches_run_and_only_on_their_pictures(
    make_features: MakeFeatures, make_query: MakeQuery, top_k: int
) -> None:
    method, features, query = mixture(top_k=top_k), make_features(12), make_query(12)
    ranks = method.router(features.need("summary_BC"), query.text_BE).argsort(1, descending=True)[:, :top_k]
    seen = watch(method)
    method(features, query)
    assert sum(len(pictures) for calls in seen.values() for pictures in calls) == 12 * top_k
    for place, name in enumerate(BRANCHES):
        rows = (ranks == place).any(1).nonzero().flatten()
        assert len(rows)
        assert len(seen[name]) == 1
        assert torch.equal(seen[name][0], features.patches_BNC[rows])


def test_a_single_picture_runs_two_branches_of_three(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method = mixture()
    seen = watch(method)
    method(make_features(1), make_query(1))
    assert sorted(len(seen[name]) for name in BRANCHES) == [0, 1, 1]


@pytest.mark.parametrize(("select", "top_k"), [("top_k", 1), ("top_k", 2), ("top_k", 3), ("threshold", 1)])
def test_sparse_equals_dense_with_masked_weights(
    make_features: MakeFeatures, make_query: MakeQuery, select: str, top_k: int
) -> None:
    method, features, query = mixture(select=select, top_k=top_k), make_features(12), make_query(12)
    weights = method.router(features.need("summary_BC"), query.text_BE)
    limit = weights.sort(1, descending=True).values[:, top_k - 1 : top_k]
    keep = weights >= limit if select == "top_k" else (weights > 1 / 3) | (weights == weights.amax(1, keepdim=True))
    masked = weights * keep / (weights * keep).sum(1, keepdim=True)
    expected = sum(
        masked[:, place, None, None] * part for place, part in enumerate(each_branch(method, features, query))
    )
    fused = method(features, query)
    torch.testing.assert_close(fused.branch_weights_BS, masked)
    torch.testing.assert_close(fused.tokens_BMC, expected, rtol=0, atol=1e-6)


def test_batch_equals_single_pictures(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = mixture(), make_features(6), make_query(6)
    together = method(features, query)
    for row in range(6):
        only = torch.tensor([row])
        alone = method(features.rows(only), query.rows(only))
        torch.testing.assert_close(together.tokens_BMC[row], alone.tokens_BMC[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.branch_weights_BS[row], alone.branch_weights_BS[0])


def test_gradients_reach_every_parameter_when_tuning(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method = mixture().train()
    method(make_features(3), make_query(3)).tokens_BMC.pow(2).sum().backward()
    silent = [name for name, value in method.named_parameters() if value.grad is None or not value.grad.any()]
    # A key's bias shifts all logits of a query alike, unless a LayerNorm follows it.
    assert silent == []


def test_gradients_reach_every_branch_and_not_the_router_when_aligning(make_features: MakeFeatures) -> None:
    method = mixture(stage=ALIGN).train()
    method(make_features(3)).tokens_BMC.pow(2).sum().backward()
    silent = {name for name, value in method.named_parameters() if value.grad is None or not value.grad.any()}
    assert silent == {name for name, _ in method.named_parameters() if name.startswith("router.")}


def test_runs_in_half_precision(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = mixture(), make_features(4), make_query(4)
    full = method(features, query).tokens_BMC
    half = method.bfloat16()(
        VisualFeatures(
            patches_BNC=features.patches_BNC.bfloat16(),
            grid=features.grid,
            summary_BC=features.need("summary_BC").bfloat16(),
            cls_attention_BN=features.cls_attention_BN,
            text_space_BNE=features.need("text_space_BNE").bfloat16(),
        ),
        Query(text_BE=query.text_BE.bfloat16()),
    )
    assert half.tokens_BMC.dtype == torch.bfloat16
    assert (half.tokens_BMC.float() - full).abs().mean() < 0.02 * full.abs().mean() + 0.02


def test_a_missing_question_is_refused_when_fusing(make_features: MakeFeatures) -> None:
    with pytest.raises(ValueError, match=r"query is missing.*pass query="):
        mixture()(make_features(1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stage": 3}, "stage is 3, but qmop has stage 1"),
        ({"select": "best"}, "select is 'best': choose one of top_k, threshold, all"),
        ({"top_k": 4}, "top_k is 4, but there are 3 branches"),
        ({"threshold": 33}, "threshold is 33, but weights sum to one: choose a number from 0 to 1"),
        ({"branches": {"pool": {}}}, r"branches names \['pool'\]"),
        ({"branches": {"prune": {"lamda": 1}}}, "options names lamda, which branch 'prune' does not take"),
        ({"tokens": 10}, "tokens is 10, but a 6 x 6 grid can be cut evenly only into 36, 9, 4, 1 tokens"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mixture(**options)


def test_another_budget_is_refused(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    with pytest.raises(ValueError, match="tokens is 4, but this qmop was built for 9"):
        mixture()(make_features(1), make_query(1), tokens=4)


def test_channel_concatenation_starts_as_the_mean_of_the_branches(make_features: MakeFeatures) -> None:
    method, features = mixture(stage=ALIGN, align_concat="channels"), make_features(2)
    parts = [method.branches[name].align(features).tokens_BMC for name in BRANCHES]
    shown = method(features).tokens_BMC
    assert shown.shape == (2, 9, 16)
    torch.testing.assert_close(shown, torch.stack(parts).mean(0), rtol=0, atol=1e-6)
    assert method.token_count(9, grid=(6, 6), stage=ALIGN) == 9
    assert "merge.weight" not in mixture(align_concat="channels").state_dict()  # the fusing stage drops it


def test_channels_set_after_building_are_refused_and_tokens_taken(make_features: MakeFeatures) -> None:
    features, later = make_features(1), mixture(align_concat="channels")
    later.stage = ALIGN
    with pytest.raises(ValueError, match="stage is 1 and align_concat is 'channels', but qmop was not built with both"):
        later(features)
    later.align_concat = "tokens"
    assert later(features).tokens_BMC.shape == (1, 27, 16)
    built = mixture(stage=ALIGN, align_concat="channels")
    built.align_concat = "tokens"
    assert built(features).tokens_BMC.shape[1] == built.token_count(9, grid=(6, 6), stage=ALIGN) == 27


def test_aligning_may_read_an_instruction(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = mixture(stage=ALIGN, align_query="question"), make_features(2), make_query(2)
    asked = method(features, query).tokens_BMC[:, 18:]
    assert torch.equal(asked, method.branches["prune"](features, query).tokens_BMC)
    assert not torch.equal(asked, method(features).tokens_BMC[:, 18:])


def test_the_router_may_read_the_text_before_its_projection(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method, features, query = mixture(text_feature="eos", text_width=5), make_features(2), make_query(2)
    query.eos_BC = torch.randn(2, 5, generator=torch.Generator().manual_seed(9))
    first = method(features, query).branch_weights_BS
    query.eos_BC = -query.eos_BC
    assert not torch.equal(first, method(features, query).branch_weights_BS)
    query.eos_BC = None
    with pytest.raises(ValueError, match=r"query.eos_BC is missing"):
        method(features, query)


def test_dense_execution_gives_the_same_and_runs_everything(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    sparse, dense = mixture(), mixture(execution="dense")
    features, query = make_features(12), make_query(12)
    seen = watch(dense)
    expected, found = sparse(features, query), dense(features, query)
    torch.testing.assert_close(found.tokens_BMC, expected.tokens_BMC, rtol=0, atol=1e-6)
    assert torch.equal(found.branch_weights_BS, expected.branch_weights_BS)
    assert {name: len(seen[name][0]) for name in BRANCHES} == dict.fromkeys(BRANCHES, 12)


@pytest.mark.parametrize("execution", ["sparse", "dense"])
@pytest.mark.parametrize("select", ["top_k", "threshold"])
def test_a_weight_that_is_no_number_shows_in_the_tokens_of_its_picture_alone(
    make_features: MakeFeatures, make_query: MakeQuery, execution: str, select: str
) -> None:
    method, features, query = mixture(execution=execution, select=select), make_features(3), make_query(3)
    query.text_BE[1] = float("nan")
    fused = method(features, query).tokens_BMC
    assert fused[1].isnan().all()
    assert fused[[0, 2]].isfinite().all()
    assert fused[[0, 2]].abs().amax(dim=(1, 2)).min() > 0


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_equal_weights_are_the_mean_of_the_branches_without_a_router(
    make_features: MakeFeatures, make_query: MakeQuery, *, training: bool
) -> None:
    method, features, query = mixture(select="equal").train(training), make_features(4), make_query(4)
    method.router.register_forward_pre_hook(lambda *_: pytest.fail("the router was asked"))
    fused = method(features, query)
    assert fused.branch_weights_BS.tolist() == [[pytest.approx(1 / 3)] * 3] * 4
    mean = torch.stack(each_branch(method, features, query)).mean(0)
    torch.testing.assert_close(fused.tokens_BMC, mean, rtol=0, atol=1e-6)


def test_equal_weights_leave_the_router_without_a_gradient(make_features: MakeFeatures, make_query: MakeQuery) -> None:
    method = mixture(select="equal").train()
    method(make_features(3), make_query(3)).tokens_BMC.pow(2).sum().backward()
    silent = {name for name, value in method.named_parameters() if value.grad is None or not value.grad.any()}
    assert silent == {name for name, _ in method.named_parameters() if name.startswith("router.")}


def test_a_router_that_reads_nothing_fuses_every_picture_alike_and_learns(
    make_features: MakeFeatures, make_query: MakeQuery
) -> None:
    method, features, query = mixture(router={"inputs": "none"}), make_features(5), make_query(5)
    chosen = method(features, query).branch_weights_BS
    assert torch.equal(chosen, chosen[:1].expand(5, 3))
    assert sorted((chosen[0] > 0).tolist()) == [False, True, True]
    weights = method.train()(features, query).branch_weights_BS
    assert torch.equal(weights, weights[:1].expand(5, 3))
    assert (weights - 1 / 3).abs().max() > 0.01
    method(features, query).tokens_BMC.pow(2).sum().backward()
    assert method.router.leave.bias.grad.abs().min() > 0
    assert not method.router.enter.weight.grad.any()  # what it would read is zero


WITHOUT_RELEVANCE = {"resampler": {"heads": 4}, "window_pool": {"heads": 4}, "prune": {"lam": 1.0}}


@pytest.mark.parametrize("execution", ["sparse", "dense"])
@pytest.mark.parametrize("deaf", [{"select": "equal"}, {"router": {"inputs": "image"}}, {"router": {"inputs": "none"}}])
def test_without_a_reader_of_the_question_none_is_declared_or_needed(
    make_features: MakeFeatures, make_query: MakeQuery, deaf: dict[str, object], execution: str
) -> None:
    method, features = mixture(branches=WITHOUT_RELEVANCE, execution=execution, **deaf), make_features(6)
    assert method.declaration.reads == {"summary", "cls_attention"}
    assert not method.declaration.text_guided
    features.text_space_BNE = None
    for mode in (method.train(), method.eval()):
        unasked, asked = mode(features), mode(features, make_query(6))
        assert torch.equal(unasked.tokens_BMC, asked.tokens_BMC)
        assert torch.equal(unasked.branch_weights_BS, asked.branch_weights_BS)


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({}, {"summary", "cls_attention", "query", "text_space"}),
        ({"select": "equal"}, {"summary", "cls_attention", "query", "text_space"}),
        ({"branches": WITHOUT_RELEVANCE}, {"summary", "cls_attention", "query"}),
        ({"branches": WITHOUT_RELEVANCE, "router": {"inputs": "text"}}, {"summary", "cls_attention", "query"}),
    ],
)
def test_one_reader_of_the_question_is_enough_to_declare_it(
    make_features: MakeFeatures, options: dict[str, object], reads: set[str]
) -> None:
    method = mixture(**options)
    assert method.declaration.reads == reads
    assert method.declaration.text_guided
    with pytest.raises(ValueError, match=r"query is missing, but qmop .*pass query="):
        method(make_features(1))


def test_a_mixture_that_reads_no_question_runs_without_a_text_tower() -> None:
    torch.manual_seed(0)
    config = tiny_config("qmop", 16, select="equal", branches={"prune": {"lam": 1.0}})
    config.query_config = None
    model = QMoPForConditionalGeneration(config).eval()
    assert model.model.query_encoder is None
    with torch.no_grad():
        found = model.get_image_features(torch.randn(2, 3, 96, 96)).compressed
    assert found.tokens_BMC.shape == (2, 16, 160)
