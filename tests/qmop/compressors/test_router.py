from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qmop.annealing import RouterSchedule, router_state
from qmop.compressors.router import Router, select_branches

SUMMARY = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def router(**options: object) -> Router:
    torch.manual_seed(5)
    return Router(**{"image_width": 16, "text_width": 8, "branches": 3, **options}).eval()  # type: ignore[arg-type]


def test_weights_sum_to_one_and_are_the_formula() -> None:
    guide = router(temperature=0.7)
    weights = guide(SUMMARY, TEXT)
    torch.testing.assert_close(weights.sum(1), torch.ones(64))
    joined = torch.cat([F.normalize(SUMMARY, dim=1), F.normalize(TEXT, dim=1)], dim=1)
    logits = F.gelu(joined @ guide.enter.weight.T + guide.enter.bias) @ guide.leave.weight.T + guide.leave.bias
    torch.testing.assert_close(weights, (logits / 0.7).softmax(1))


def test_a_low_temperature_decides_and_a_high_one_evens_out() -> None:
    guide = router().train()
    order = guide(SUMMARY, TEXT).argmax(1)
    guide.anneal(1e-4, 0.0)
    sharp = guide(SUMMARY, TEXT)
    assert torch.equal(sharp.argmax(1), order)
    assert sharp.max(1).values.mean() > 0.99
    guide.anneal(1e4, 0.0)
    assert (guide(SUMMARY, TEXT) - 1 / 3).abs().max() < 1e-4


def test_noise_acts_in_training_only() -> None:
    guide = router()
    quiet = guide(SUMMARY, TEXT)
    guide.anneal(0.5, 1.0, seed=3)
    assert torch.equal(guide(SUMMARY, TEXT), quiet)
    guide.train()
    assert (guide(SUMMARY, TEXT) - quiet).abs().mean() > 0.1


def test_evaluation_rests_at_the_final_temperature_whatever_was_annealed_last() -> None:
    guide = router(temperature=0.5)
    resting = guide(SUMMARY, TEXT)
    guide.anneal(5.0, 0.0)
    assert torch.equal(guide(SUMMARY, TEXT), resting)
    assert (guide.temperature, guide.train().temperature) == (0.5, 5.0)
    assert (guide(SUMMARY, TEXT) - resting).abs().max() > 0.01
    schedule = RouterSchedule()
    guide.anneal(*router_state(99, 100, schedule))  # a schedule that ends where the router rests: training ends there
    assert torch.equal(guide(SUMMARY, TEXT), resting)


def test_no_noise_is_the_same_in_training_and_evaluation() -> None:
    guide = router()
    quiet = guide(SUMMARY, TEXT)
    guide.train().anneal(0.5, 0.0, seed=3)
    assert torch.equal(guide(SUMMARY, TEXT), quiet)


def test_noise_comes_from_its_seed_and_from_nothing_else() -> None:
    guide = router().train()

    def draw(seed: int) -> torch.Tensor:
        guide.anneal(0.5, 1.0, seed=seed)
        torch.rand(3)  # moves the global stream, which must not matter
        return guide(SUMMARY, TEXT)

    first = draw(3)
    assert torch.equal(first, draw(3))
    assert not torch.equal(first, draw(4))


def test_noise_is_gumbel() -> None:
    guide = router(temperature=1.0).train()
    torch.nn.init.zeros_(guide.leave.weight)
    with torch.no_grad():
        guide.leave.bias.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
    guide.anneal(1.0, 1.0, seed=8)
    many = guide(SUMMARY[:1].expand(40_000, -1), TEXT[:1].expand(40_000, -1)).argmax(1)
    shares = torch.bincount(many, minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), rtol=0, atol=0.01)  # the Gumbel-max identity


def test_normalising_makes_length_irrelevant() -> None:
    guide, plain = router(), router(normalise=False)
    torch.testing.assert_close(guide(SUMMARY * 7, TEXT / 3), guide(SUMMARY, TEXT))
    assert (plain(SUMMARY * 7, TEXT / 3) - plain(SUMMARY, TEXT)).abs().max() > 0.01


def test_picture_and_question_both_count() -> None:
    guide = router()
    weights = guide(SUMMARY, TEXT)
    assert (guide(SUMMARY.flip(0), TEXT) - weights).abs().max() > 0.01
    assert (guide(SUMMARY, TEXT.flip(0)) - weights).abs().max() > 0.01


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_divide_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature is {temperature}.*above 0"):
        router(temperature=temperature)


WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.35, 0.45], [0.4, 0.4, 0.2]])


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (1, [[1, 0, 0], [0, 0, 1], [1, 0, 0]]),
        (2, [[0.625, 0.375, 0], [0, 0.4375, 0.5625], [0.5, 0.5, 0]]),
        (3, WEIGHTS.tolist()),
    ],
)
def test_the_strongest_are_kept_and_renormalised(top_k: int, expected: list[list[float]]) -> None:
    torch.testing.assert_close(select_branches(WEIGHTS, "top_k", top_k, 0.0), torch.tensor(expected, dtype=torch.float))


def test_a_threshold_keeps_what_exceeds_it_and_always_the_strongest() -> None:
    chosen = select_branches(WEIGHTS, "threshold", 1, 0.34)
    torch.testing.assert_close(chosen[0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(chosen[1], torch.tensor([0.0, 0.4375, 0.5625]))
    torch.testing.assert_close(chosen[2], torch.tensor([0.5, 0.5, 0.0]))
    assert (select_branches(WEIGHTS, "threshold", 1, 0.9) == 1.0).sum(1).tolist() == [1, 1, 1]


def test_all_changes_nothing() -> None:
    assert torch.equal(select_branches(WEIGHTS, "all", 1, 0.9), WEIGHTS)


def test_equal_weights_need_no_choice() -> None:
    assert torch.equal(select_branches(WEIGHTS, "equal", 1, 0.9), WEIGHTS)


@pytest.mark.parametrize(
    ("inputs", "reads_picture", "reads_question"),
    [("both", True, True), ("image", True, False), ("text", False, True), ("none", False, False)],
)
def test_the_router_reads_what_it_is_told_to(inputs: str, *, reads_picture: bool, reads_question: bool) -> None:
    guide = router(inputs=inputs)
    weights = guide(SUMMARY, TEXT)
    assert ((guide(SUMMARY.flip(0), TEXT) - weights).abs().max() > 0.01) == reads_picture
    assert ((guide(SUMMARY, TEXT.flip(0)) - weights).abs().max() > 0.01) == reads_question


def test_a_router_that_reads_nothing_gives_all_the_same_learned_weights() -> None:
    guide = router(inputs="none", temperature=1.0)
    first = guide(SUMMARY, TEXT)
    assert torch.equal(first, first[:1].expand(64, 3))
    logits = F.gelu(guide.enter.bias) @ guide.leave.weight.T + guide.leave.bias
    torch.testing.assert_close(first[0], logits.softmax(0))
    assert (first[0] - 1 / 3).abs().max() > 0.001
    with torch.no_grad():
        guide.leave.bias.copy_(torch.tensor([2.0, 0.0, -2.0]))
    assert guide(SUMMARY, TEXT)[5].argsort(descending=True).tolist() == [0, 1, 2]


def test_inputs_that_are_none_of_these_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs is 'question': choose one of both, image, text, none"):
        router(inputs="question")


def test_weights_sum_to_one_in_half_precision_too() -> None:
    half = router().eval().bfloat16()
    weights = half(torch.randn(64, 16).bfloat16(), torch.randn(64, 8).bfloat16())
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(dim=1), torch.ones(64), atol=1e-6)
