from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from qmop.surgery import compress
from qmop.tiny.assemble import tiny_model, tiny_processor
from tests.fixtures.stock_llava import enliven, stock_llava

PIXELS = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["ours", "attached"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Six vision layers behind a method that reads levels, or one attached to a stock model."""
    if request.param == "ours":
        model = tiny_model("tokenpacker", 16)
        enliven(model, 0)
        yield model
        return
    with compress(stock_llava(), "average_pool", 16) as handle:
        yield handle.model


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"visual_token": 4}, "visual_token is no argument of get_image_features: did you mean 'visual_tokens'"),
        ({"image_row": torch.zeros(2)}, "image_row is no argument of get_image_features: did you mean 'image_rows'"),
        ({"image_sizes": [[96, 96]]}, "image_sizes are given"),
        ({"vision_feature_layer": 99}, "vision_feature_layer is 99, but the vision tower has 6 layers: choose -7 to 6"),
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\], but .* one layer"),
    ],
)
def test_arguments_that_would_be_passed_over_are_refused(model: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model.get_image_features(PIXELS, **given)


@torch.no_grad()
def test_stock_arguments_without_effect_are_taken(model: Any) -> None:
    expected = model.get_image_features(PIXELS).pooler_output
    told = model.get_image_features(
        PIXELS, vision_feature_select_strategy="default", image_sizes=None, return_dict=True, image_rows=None
    )
    assert all(torch.equal(one, two) for one, two in zip(told.pooler_output, expected, strict=True))


@pytest.mark.parametrize(
    ("method", "field", "value", "said"),
    [
        ("tokenpacker", "vision_feature_layer", 99, "vision_feature_layer is 99, but .* choose -7 to 6"),
        ("fastervlm", "importance_layer", 6, "importance_layer is 6, but .* choose -6 to 5"),
        ("tokenpacker", "feature_levels", [2, 3, 4, 50], r"feature_levels is \[2, 3, 4, 50\], but .* choose -7 to 6"),
    ],
)
def test_layers_of_a_configuration_are_checked_where_they_are_read(
    method: str, field: str, value: Any, said: str
) -> None:
    model = tiny_model(method, 16)
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match=said):
        model.get_image_features(PIXELS)
    model = tiny_model("average_pool", 16)
    model.config.importance_layer, model.config.feature_levels = 6, [2, 3, 4, 50]
    assert len(model.get_image_features(PIXELS).pooler_output) == 2


def test_a_tuple_is_refused() -> None:
    with pytest.raises(ValueError, match="return_dict is False"):
        tiny_model("average_pool", 16).get_image_features(PIXELS, return_dict=False)


@torch.no_grad()
def test_another_layer_may_be_named_per_call(pictures: Callable[[int], list[Image.Image]]) -> None:
    model = tiny_model("average_pool", 16)
    enliven(model, 0)
    batch = tiny_processor(16)(images=pictures(1), text="<user> <image> what ? <assistant>", return_tensors="pt")
    usual, told = model(**batch).logits, model(**batch, vision_feature_layer=-4).logits
    written = model.generate(**batch, vision_feature_layer=-4, max_new_tokens=3, do_sample=False)
    states = model.model(**batch, vision_feature_layer=-4).last_hidden_state
    model.config.vision_feature_layer = -4
    assert torch.equal(model(**batch).logits, told)
    assert torch.equal(model.lm_head(states), told)
    assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), written)
    assert (usual - told).abs().max() > 1e-3
