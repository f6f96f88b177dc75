"""What the convolutional methods share, and what holds for each of them inside a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qmop.compressors import build_compressor
from qmop.compressors.convolutions import (
    SqueezeExcite,
    as_map,
    convolve,
    pool_to,
    side_of,
    start_normal,
    start_uniform,
)
from qmop.features import VisualFeatures
from qmop.modeling_qmop import QMoPForConditionalGeneration
from qmop.tiny.assemble import tiny_model, tiny_processor

MakeFeatures = Callable[..., VisualFeatures]
Pictures = Callable[[int], list[Image.Image]]

METHODS = ["pixel_shuffle", "ldp", "ldp_v2", "c_abstractor"]
SQUARES_ONLY = ["ldp_v2", "c_abstractor"]


def batch_of(pictures: Pictures, count: int = 2) -> Any:
    texts = [f"<user> <image> is it {colour} ? <assistant>" for colour in ("red", "blue", "green")[:count]]
    return tiny_processor(16)(images=pictures(count), text=texts, padding=True, return_tensors="pt")


def pooled_by_hand(map_BHWC: Tensor, side: int) -> Tensor:
    """Adaptive pooling, window by window: from floor(i H / G) up to ceil((i + 1) H / G)."""
    batch, grid, _, width = map_BHWC.shape
    edges = [(place * grid // side, -(-(place + 1) * grid // side)) for place in range(side)]
    result = torch.empty(batch, side, side, width, dtype=map_BHWC.dtype)
    for row, (top, bottom) in enumerate(edges):
        for column, (left, right) in enumerate(edges):
            result[:, row, column] = map_BHWC[:, top:bottom, left:right].reshape(batch, -1, width).mean(1)
    return result


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 6])
def test_pooling_equals_a_loop_over_windows(make_features: MakeFeatures, side: int) -> None:
    features = make_features(2)
    map_BHWC = as_map(features, 6)
    assert torch.equal(map_BHWC[1, 4, 2], features.patches_BNC[1, 4 * 6 + 2])
    torch.testing.assert_close(pool_to(map_BHWC, side), pooled_by_hand(map_BHWC, side), rtol=0, atol=1e-6)


def test_a_convolution_sees_rows_as_rows() -> None:
    lift = nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
    nn.init.zeros_(lift.weight)
    with torch.no_grad():
        lift.weight[:, 0, 0, 1] = 1.0  # each place takes over the one above it
    map_BHWC = torch.arange(24.0).view(1, 3, 4, 2)
    lifted = convolve(lift, map_BHWC)
    assert torch.equal(lifted[:, 1:], map_BHWC[:, :-1])
    assert not lifted[:, 0].any()


@pytest.mark.parametrize("kind", ["silu", "relu"])
def test_the_gate_weighs_each_channel_by_the_means(kind: Any) -> None:
    torch.manual_seed(0)
    gate, map_BHWC = SqueezeExcite(8, 3, kind), torch.randn(2, 4, 4, 8) * 3
    with torch.no_grad():
        gate.squeeze.weight.mul_(6)
        gate.excite.weight.mul_(6)
    for picture, weighed in zip(map_BHWC, gate(map_BHWC), strict=True):
        inner = gate.squeeze.weight @ picture.reshape(16, 8).mean(0) + gate.squeeze.bias
        inner = inner / (1 + (-inner).exp()) if kind == "silu" else inner.clamp(min=0)
        outer = gate.excite.weight @ inner + gate.excite.bias
        share = 1 / (1 + (-outer).exp()) if kind == "silu" else (outer / 6 + 0.5).clamp(0, 1)
        assert share.max() - share.min() > 0.3
        torch.testing.assert_close(weighed, picture * share, rtol=0, atol=1e-5)


def test_start_values_are_normal_or_torchs_own() -> None:
    layers = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(200, 200, 3, groups=200), nn.LayerNorm(7))
    start_uniform(layers)
    wide, deep = layers[0], layers[1]
    for layer, bound in ((wide, 1 / 20), (deep, 1 / 3)):
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    start_normal(layers)
    assert not wide.bias.any()
    assert not deep.bias.any()
    assert wide.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert deep.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(layers[2].weight, torch.ones(7))


def test_squares_need_not_divide_the_grid() -> None:
    assert [side_of(24, tokens) for tokens in (576, 256, 144, 64, 1)] == [24, 16, 12, 8, 1]


@pytest.mark.parametrize("name", SQUARES_ONLY)
@pytest.mark.parametrize("tokens", [2, 20, 35])
def test_budgets_that_are_no_square_name_those_that_fit(name: str, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}, .* at most 6 wide: choose one of 1, 4, 9, 16, 25, 36"):
        build_compressor(name, grid=6, width=16, tokens=tokens)


@pytest.mark.parametrize("name", ["pixel_shuffle", "ldp"])
@pytest.mark.parametrize("tokens", [16, 20])
def test_budgets_that_no_stride_leaves_name_those_that_fit(name: str, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}, but a 6 x 6 grid .* only into 36, 9, 4, 1 tokens"):
        build_compressor(name, grid=6, width=16, tokens=tokens)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tokens", [0, 37])
def test_budgets_beyond_the_patches_are_refused(name: str, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"tokens is {tokens}, but a 6 x 6 grid has 36 patches: choose 1 to 36"):
        build_compressor(name, grid=6, width=16, tokens=tokens)


@pytest.mark.parametrize("name", METHODS)
def test_other_budgets_and_grids_than_the_built_ones_are_refused(make_features: MakeFeatures, name: str) -> None:
    method = build_compressor(name, grid=6, width=16, tokens=9)
    with pytest.raises(ValueError, match=f"tokens is 4, but this {name} was built for 9"):
        method(make_features(1), tokens=4)
    with pytest.raises(ValueError, match=r"features have 16 patches, .* built for a 6 x 6 grid"):
        method(make_features(1, grid=4))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("grid", "width", "tokens"), [(6, 16, 36), (6, 20, 1), (7, 16, 49), (8, 24, 16), (10, 12, 4)])
def test_batches_equal_single_pictures_at_any_size(
    make_features: MakeFeatures, name: str, grid: int, width: int, tokens: int
) -> None:
    torch.manual_seed(3)
    own = {} if name.startswith("ldp") else {"language_width": 28}
    method, features = build_compressor(name, grid=grid, width=width, tokens=tokens, **own), None
    features = make_features(3, grid=grid, width=width)
    together = method(features).tokens_BMC
    assert together.shape == (3, tokens, own.get("language_width", width))
    for row in range(3):
        alone = method(features.rows(torch.tensor([row]))).tokens_BMC
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_single_and_half_precision_agree(make_features: MakeFeatures, name: str) -> None:
    torch.manual_seed(5)
    method, features = build_compressor(name, grid=6, width=32, tokens=9), make_features(2, width=32)
    expected = method(features).tokens_BMC
    features.patches_BNC = features.patches_BNC.bfloat16()
    told = copy.deepcopy(method).bfloat16()(features).tokens_BMC
    assert told.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(told.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_every_parameter_through_the_language_model(pictures: Pictures, name: str) -> None:
    torch.manual_seed(4)
    model = tiny_model(name, 16).train().requires_grad_(requires_grad=False)
    projector, batch = model.model.multi_modal_projector.requires_grad_(), batch_of(pictures)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    parameters = dict(projector.named_parameters())
    assert len(parameters) >= 4
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", METHODS)
def test_models_are_written_and_read_back_bit_by_bit(pictures: Pictures, tmp_path: Path, name: str) -> None:
    torch.manual_seed(6)
    model, batch = tiny_model(name, 16), batch_of(pictures, 1)
    model.save_pretrained(tmp_path)
    again = QMoPForConditionalGeneration.from_pretrained(tmp_path).eval()
    pairs = zip([*model.parameters(), *model.buffers()], [*again.parameters(), *again.buffers()], strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, again(**batch).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_missing_weights_start_as_new_ones_do(tmp_path: Path, name: str) -> None:
    """A checkpoint without the method, as when another one takes its place, gets the method's own start values."""
    tiny_model("average_pool", 16).save_pretrained(tmp_path)
    config = tiny_model(name, 16).config
    config.save_pretrained(tmp_path)
    loaded = QMoPForConditionalGeneration.from_pretrained(tmp_path, config=config)
    fresh: Any = tiny_model(name, 16)
    pairs = zip(
        loaded.model.multi_modal_projector.compressor.named_parameters(),
        fresh.model.multi_modal_projector.compressor.parameters(),
        strict=True,
    )
    for (parameter, value), new in pairs:
        assert value.isfinite().all(), parameter
        if value.numel() > 100:
            assert value.std().item() == pytest.approx(new.std().item(), rel=0.25, abs=1e-12), parameter
