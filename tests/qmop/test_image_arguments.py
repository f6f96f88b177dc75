from __future__ import annotations

from typing import Any

import pytest

from qmop.image_arguments import one_layer, require_known, require_layers


def test_known_arguments_pass() -> None:
    require_known({"visual_tokens": 4, "image_sizes": None}, ("visual_tokens", "image_sizes"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"visual_token": 4}, "visual_token is no argument of get_image_features: did you mean 'visual_tokens'"),
        ({"zzz": None}, "zzz is no argument of get_image_features: choose among image_sizes, visual_tokens"),
        ({"image_sizes": [[2, 2]]}, "image_sizes are given, but .* have one size: leave them out"),
    ],
)
def test_others_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_known(given, ("visual_tokens", "image_sizes"))


@pytest.mark.parametrize("layer", [-5, -1, 0, 4])
def test_every_hidden_state_may_give_the_patches(layer: int) -> None:
    assert one_layer(layer, 4) == layer


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (5, "is 5, but the vision tower has 4 layers: choose -5 to 4"),
        (-6, "is -6, but .* choose -5 to 4"),
        ([-2, -1], r"is \[-2, -1\], but methods compress the patches of one layer: name one"),
        (True, "is True, but methods compress the patches of one layer"),
        (None, "is None, but methods compress the patches of one layer"),
    ],
)
def test_other_layers_are_refused(layer: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"vision_feature_layer {said}"):
        one_layer(layer, 4)


def test_blocks_are_one_fewer_than_hidden_states() -> None:
    for block in (None, -4, 3):
        require_layers(block, [-5, 4], 4)
    for block in (-5, 4, "3"):
        with pytest.raises(ValueError, match=f"importance_layer is {block!r}, but .* 4 layers: choose -4 to 3"):
            require_layers(block, None, 4)
    with pytest.raises(ValueError, match=r"feature_levels is \[2, 5\], but .* 4 layers: choose -5 to 4"):
        require_layers(None, [2, 5], 4)
