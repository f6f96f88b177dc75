from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaConfig, LlavaForConditionalGeneration

from qmop.compressors.resampler import Resampler
from qmop.compressors.window_pool import WindowPool
from qmop.drawing import BAR, GAP, LINE, SIDE
from qmop.features import CompressedTokens, Query, VisualFeatures
from qmop.surgery import compress
from qmop.tiny.assemble import tiny_model, tiny_processor
from qmop.visualize import (
    _kept,
    draw,
    explain,
    heat_maps,
    resampler_attention,
    window_attention,
)
from tests.fixtures.stock_llava import stock_llava, stock_processor

GRID = (2, 3)
CELL = SIDE // 3
WHITE = Image.new("RGB", (30, 20), "white")
TOKENS_BMC = torch.zeros(2, 2, 4)
QUESTION = "what colour is the circle ?"


def panel(drawn: Image.Image, place: int, cell: tuple[int, int]) -> tuple[int, ...]:
    """The colour in the middle of a patch of a panel."""
    width = 3 * CELL
    x = GAP + place * (width + GAP) + cell[1] * CELL + CELL // 2
    return drawn.getpixel((x, LINE + cell[0] * CELL + CELL // 2))


def test_kept_patches_stay_and_others_go_dark() -> None:
    drawn = draw(WHITE, CompressedTokens(tokens_BMC=TOKENS_BMC, kept_BM=torch.tensor([[0, 1], [5, 0]])), GRID, row=1)
    colours = {(y, x): panel(drawn, 1, (y, x)) for y in range(2) for x in range(3)}
    assert colours == {cell: (255,) * 3 if cell in {(1, 2), (0, 0)} else (64,) * 3 for cell in colours}
    assert all(panel(drawn, 0, cell) == (255, 255, 255) for cell in colours)
    assert drawn.size == (2 * 3 * CELL + 3 * GAP, LINE + 2 * CELL + GAP)


def test_places_without_a_patch_are_not_shown_as_kept() -> None:
    compressed = CompressedTokens(
        tokens_BMC=torch.zeros(1, 3, 4),
        kept_BM=torch.tensor([[-1, 2, 4]]),
        mask_BM=torch.tensor([[True, True, False]]),
    )
    drawn = draw(WHITE, compressed, GRID)
    assert _kept(compressed, 0, None) == {2}
    assert panel(drawn, 1, (0, 2)) == (255, 255, 255)
    assert panel(drawn, 1, (1, 1)) == panel(drawn, 1, (1, 2)) == (64, 64, 64)


def test_merged_patches_share_a_colour() -> None:
    compressed = CompressedTokens(
        tokens_BMC=TOKENS_BMC[:1], kept_BM=torch.tensor([[0, 3]]), groups_BN=torch.tensor([[0, 1, 1, 2, 2, -1]])
    )
    drawn = draw(WHITE, compressed, GRID)
    one, two = panel(drawn, 2, (0, 1)), panel(drawn, 2, (1, 0))
    assert one == panel(drawn, 2, (0, 2))
    assert two == panel(drawn, 2, (1, 1))
    assert len({one, two, (255, 255, 255), (64, 64, 64)}) == 4
    assert panel(drawn, 2, (0, 0)) == (255, 255, 255)
    assert panel(drawn, 2, (1, 2)) == (64, 64, 64)
    # What stands for several patches is merged, not kept.
    assert panel(drawn, 1, (0, 0)) == (255, 255, 255)
    assert panel(drawn, 1, (1, 0)) == (64, 64, 64)


def test_heat_is_brightest_at_the_greatest_number() -> None:
    values = torch.tensor([0.1, 0.2, 0.9, 0.4, 0.5, 0.3])
    drawn = draw(WHITE, CompressedTokens(tokens_BMC=TOKENS_BMC), GRID, heat={"score": values})
    brightness = [sum(panel(drawn, 1, (y, x))) for y in range(2) for x in range(3)]
    assert np.argsort(brightness).tolist() == values.argsort().tolist()
    flat = draw(WHITE, CompressedTokens(tokens_BMC=TOKENS_BMC), GRID, heat={"score": torch.ones(6)})
    assert len({panel(flat, 1, (y, x)) for y in range(2) for x in range(3)}) == 1


def test_bars_are_as_long_as_the_weights() -> None:
    weights = torch.tensor([[0.75, 0.25, 0.0]])
    drawn = np.asarray(draw(WHITE, CompressedTokens(tokens_BMC=TOKENS_BMC[:1], branch_weights_BS=weights), GRID))
    bars = drawn[:, 3 * CELL + 2 * GAP :]
    rows = [LINE + GAP + place * 3 * LINE + LINE + LINE // 2 for place in range(3)]
    lengths = [(bars[row] == BAR).all(axis=-1).sum() / (3 * CELL) for row in rows]
    assert lengths == pytest.approx([0.75, 0.25, 0.0], abs=0.02)


def test_numbers_for_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 4 numbers for a 2 x 3 grid"):
        draw(WHITE, CompressedTokens(tokens_BMC=TOKENS_BMC), GRID, heat={"score": torch.ones(4)})


def features_of(width: int, grid: int) -> VisualFeatures:
    torch.manual_seed(1)
    return VisualFeatures(patches_BNC=torch.randn(2, grid * grid, width), grid=(grid, grid))


def test_window_attention_is_what_the_branch_weighs_its_values_by() -> None:
    branch, features = WindowPool(width=16, grid=6, tokens=9, heads=1), features_of(16, 6)
    torch.nn.init.normal_(branch.query_MC)
    with torch.no_grad():
        weights = window_attention(branch, features)
        values = branch.attention.keys_values(features.patches_BNC)[1]
        summed = (weights.unsqueeze(-1) * values).view(2, 3, 2, 3, 2, 16).sum((2, 4)).flatten(1, 2)
        torch.testing.assert_close(branch.attention.output(summed), branch(features).tokens_BMC, rtol=0, atol=1e-5)
    assert weights.std() > 0.05
    torch.testing.assert_close(weights.view(2, 3, 2, 3, 2).sum((2, 4)), torch.ones(2, 3, 3))


def test_resampler_attention_is_what_the_branch_weighs_its_values_by() -> None:
    branch, features = Resampler(width=16, grid=6, tokens=5, heads=1), features_of(16, 6)
    torch.nn.init.normal_(branch.query_MC)
    with torch.no_grad():
        weights = resampler_attention(branch, features)
        values = branch.attention.keys_values(features.patches_BNC)[1]
        mean = branch.attention.output(torch.einsum("bn,bnc->bc", weights, values))
        torch.testing.assert_close(mean, branch(features).tokens_BMC.mean(1), rtol=0, atol=1e-5)
    assert weights.std() > 0.001


def test_heads_are_averaged() -> None:
    for kind, tokens, shown in ((WindowPool, 9, window_attention), (Resampler, 9, resampler_attention)):
        branch, features = kind(width=16, grid=6, tokens=tokens, heads=4), features_of(16, 6)
        assert shown(branch, features).sum(1).tolist() == pytest.approx([tokens if kind is WindowPool else 1.0] * 2)


def test_a_mixture_shows_what_each_branch_looks_at() -> None:
    torch.manual_seed(0)
    model = tiny_model("qmop", tokens=16)
    features = VisualFeatures(
        patches_BNC=torch.randn(1, 144, 128),
        grid=(12, 12),
        cls_attention_BN=torch.rand(1, 144),
        text_space_BNE=torch.randn(1, 144, 128),
    )
    compressor = model.model.multi_modal_projector.compressor
    maps = heat_maps(compressor, features, Query(text_BE=torch.randn(1, 128)))
    assert list(maps) == ["resampler attention", "window attention", "prune score"]
    assert all(values.shape == (1, 144) for values in maps.values())


@pytest.mark.parametrize(
    ("name", "tokens", "panels"), [("mlp", None, 1), ("average_pool", 16, 1), ("prune", 16, 3), ("qmop", 16, 6)]
)
def test_explain_shows_all_that_there_is(
    pictures: Callable[[int], list[Image.Image]], name: str, tokens: int | None, panels: int
) -> None:
    torch.manual_seed(0)
    processor, picture = tiny_processor(tokens or 144), pictures(1)[0]
    drawn = explain(tiny_model(name, tokens), processor, picture, QUESTION)
    side = 12 * (SIDE // 12)
    assert drawn.width == panels * (side + GAP) + GAP
    seen = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC), dtype=int)
    top = LINE + GAP + LINE
    shown = np.asarray(drawn.crop((GAP, top, GAP + side, top + side)), dtype=int)
    assert np.abs(shown - seen).mean() < 2  # through normalisation and back


def test_explain_needs_a_projector_of_ours(pictures: Callable[[int], list[Image.Image]]) -> None:
    model = tiny_model()
    model.model.multi_modal_projector = torch.nn.Identity()
    with pytest.raises(ValueError, match="projector is none of ours"):
        explain(model, tiny_processor(), pictures(1)[0], QUESTION)


def test_a_method_attached_to_a_stock_llava_is_explained_too(pictures: Callable[[int], list[Image.Image]]) -> None:
    ours, picture = tiny_model("prune", tokens=16), pictures(1)[0]
    stock = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=ours.config.vision_config,
            text_config=ours.config.text_config,
            image_token_index=ours.config.image_token_id,
        )
    ).eval()
    stock.model.vision_tower.load_state_dict(ours.model.vision_tower.state_dict())
    processor = tiny_processor(16)
    with compress(
        stock, "prune", tokens=16, text_encoder=ours.model.query_encoder, query_tokenizer=processor.query_tokenizer
    ):
        drawn = explain(stock, processor, picture, QUESTION)
    assert np.array_equal(np.asarray(drawn), np.asarray(explain(ours, processor, picture, QUESTION)))


def test_a_method_inside_the_language_model_shows_what_it_drops_there(
    monkeypatch: pytest.MonkeyPatch, pictures: Callable[[int], list[Image.Image]]
) -> None:
    drawn: list[CompressedTokens] = []
    monkeypatch.setattr("qmop.visualize.draw", lambda image, compressed, *_, **__: drawn.append(compressed) or image)
    model = tiny_model("fastv", 16)
    select = model.model.multi_modal_projector.compressor.select
    explain(model, tiny_processor(144), pictures(1)[0], QUESTION)
    assert drawn[0].kept_BM is not None
    assert drawn[0].kept_BM.shape == (1, 16)
    assert model.model.multi_modal_projector.compressor.select == select


def test_a_picture_is_shown_as_a_viewer_shows_it() -> None:
    model, processor = stock_llava(), stock_processor()
    clear = Image.new("RGBA", (96, 96), (0, 0, 0, 0))
    with compress(model, "average_pool", 16):
        told = explain(model, processor, clear, QUESTION)
        assert np.array_equal(np.asarray(told), np.asarray(explain(model, processor, WHITE, QUESTION)))
        with pytest.raises(ValueError, match="narrower than 1 : 50"):
            explain(model, processor, Image.new("RGB", (1, 60)), QUESTION)
