from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from qmop.compressors.downsample import Downsample, side_of
from qmop.encoders import visual_features
from qmop.features import CompressedTokens, VisualFeatures
from qmop.tiny.assemble import tiny_model

MakeFeatures = Callable[..., VisualFeatures]
ThroughModel = Callable[..., tuple[CompressedTokens, torch.Tensor]]


def downsample(tokens: int, grid: int = 12) -> Downsample:
    return Downsample(width=128, grid=grid, tokens=tokens)


@pytest.mark.parametrize(("tokens", "side"), [(1, 1), (25, 5), (144, 12)])
def test_any_square_up_to_the_grid_has_a_side(tokens: int, side: int) -> None:
    assert side_of(tokens, 12) == side


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (15, "tokens is 15, but downsample makes a square map of tokens: choose 9 or 16"),
        (169, "tokens is 169, but a 12 x 12 grid has 144 patches"),
        (0, "tokens is 0, but a 12 x 12 grid"),
    ],
)
def test_other_budgets_are_refused(tokens: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        downsample(tokens)
    with pytest.raises(ValueError, match=said):
        downsample(16).picture(torch.zeros(1, 3, 96, 96), 8, tokens)
    with pytest.raises(ValueError, match=said):
        downsample(16)(VisualFeatures(patches_BNC=torch.zeros(1, 16, 128), grid=(4, 4)), tokens=tokens)


def test_the_picture_is_resized_as_pillow_does() -> None:
    draw = np.random.default_rng(0)
    smooth = Image.fromarray(draw.integers(60, 190, (6, 6), dtype=np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    expected = np.asarray(smooth.convert("F").resize((40, 40), Image.Resampling.BICUBIC))
    small = downsample(25).picture(torch.tensor(np.asarray(smooth), dtype=torch.float32)[None, None], 8)
    assert small.shape == (1, 1, 40, 40)
    torch.testing.assert_close(small[0, 0], torch.tensor(expected), rtol=0, atol=1e-2)


def test_half_precision_pictures_stay_half_and_whole_ones_as_they_are() -> None:
    pixels = torch.randn(2, 3, 96, 96)
    assert downsample(144).picture(pixels, 8) is pixels
    small = downsample(16).picture(pixels.bfloat16(), 8)
    assert (small.shape, small.dtype) == ((2, 3, 32, 32), torch.bfloat16)
    assert downsample(16).picture(pixels, 8, tokens=9).shape == (2, 3, 24, 24)


def test_pictures_of_another_shape_become_square() -> None:
    assert downsample(16).picture(torch.randn(1, 3, 48, 96), 8).shape == (1, 3, 32, 32)


def test_all_patches_of_the_small_picture_pass(make_features: MakeFeatures) -> None:
    features = make_features(2, grid=4)
    method = Downsample(width=16, grid=6, tokens=16)
    assert torch.equal(method(features).tokens_BMC, features.patches_BNC)
    with pytest.raises(ValueError, match=r"has 16 patches, but downsample to 9 tokens reads.*3 x 3.*picture\(\)"):
        method(features, tokens=9)


@pytest.mark.parametrize("grid", [(2, 8), (8, 2)])
def test_a_map_that_is_not_square_is_refused(make_features: MakeFeatures, grid: tuple[int, int]) -> None:
    features = make_features(1, grid=4)
    features.grid = grid
    with pytest.raises(ValueError, match="downsample to 16 tokens"):
        Downsample(width=16, grid=6, tokens=16)(features)


def test_without_a_stated_grid_the_patches_are_counted(make_features: MakeFeatures) -> None:
    features = VisualFeatures(patches_BNC=make_features(1, grid=4).patches_BNC)
    assert Downsample(width=16, grid=6, tokens=16)(features).tokens_BMC.shape == (1, 16, 16)
    with pytest.raises(ValueError, match="has 16 patches, but downsample to 9 tokens"):
        Downsample(width=16, grid=6, tokens=9)(features)


@torch.no_grad()
def test_the_tower_runs_on_the_small_picture(through_model: ThroughModel) -> None:
    seen, logits = through_model("downsample", 25)
    assert seen.tokens_BMC.shape == (2, 25, 160)
    assert logits.isfinite().all()
    model = tiny_model("downsample", 16)
    sizes: list[tuple[int, ...]] = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    pixels = torch.randn(2, 3, 96, 96)
    own = model.get_image_features(pixels).compressed
    fewer = model.get_image_features(pixels, visual_tokens=9).compressed
    hook.remove()
    assert sizes == [(2, 3, 32, 32), (2, 3, 24, 24)]
    assert (own.tokens_BMC.shape, fewer.tokens_BMC.shape) == ((2, 16, 160), (2, 9, 160))
    projector, tower = model.model.multi_modal_projector, model.model.vision_tower
    features = visual_features(tower, projector.compressor.picture(pixels[1:], 8), projector.declaration)
    assert features.grid == (4, 4)
    torch.testing.assert_close(projector.connector(features.patches_BNC)[0], own.tokens_BMC[1], rtol=0, atol=1e-5)
