"""What `get_image_features` may be given beside the pixels, and which of a vision tower's layers there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

STOCK_IMAGE_INPUTS = ("vision_feature_layer", "vision_feature_select_strategy", "image_sizes")
"""What stock `get_image_features` takes beside the pixels."""


def require_known(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse arguments that would be passed over.

    Args:
        given: by name.
        known: all names that there are.

    Raises:
        ValueError: naming the first that there is not, or `image_sizes`, which belong to pictures of several sizes.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(sorted(known))}"
            raise ValueError(f"{name} is no argument of get_image_features: {hint}")
    if given.get("image_sizes") is not None:
        raise ValueError("image_sizes are given, but the pictures of a compressed model have one size: leave them out")


def one_layer(layer: Any, layers: int) -> int:
    """The layer that patches are taken from.

    Args:
        layer: the place of a hidden state; 0 is what enters the first layer.
        layers: of the vision tower.

    Raises:
        ValueError: if there are several, or none of that number.
    """
    if not isinstance(layer, int) or isinstance(layer, bool):
        raise ValueError(f"vision_feature_layer is {layer}, but methods compress the patches of one layer: name one")
    _require_place("vision_feature_layer", layer, layer, layers, states=True)
    return layer


def require_layers(importance_layer: Any, feature_levels: Iterable[Any] | None, layers: int) -> None:
    """Refuse fields of a configuration that name layers which a vision tower has not got.

    Args:
        importance_layer: a block; the method's own when absent.
        feature_levels: places of hidden states; the usual ones when absent.
        layers: of the vision tower.

    Raises:
        ValueError: with the field, its value and the range.
    """
    if importance_layer is not None:
        _require_place("importance_layer", importance_layer, importance_layer, layers, states=False)
    if feature_levels is not None:
        levels = list(feature_levels)
        for level in levels:
            _require_place("feature_levels", levels, level, layers, states=True)


def _require_place(field: str, value: Any, place: Any, layers: int, *, states: bool) -> None:
    """Hidden states are one more than layers."""
    low, high = (-layers - 1, layers) if states else (-layers, layers - 1)
    if not isinstance(place, int) or isinstance(place, bool) or not low <= place <= high:
        raise ValueError(f"{field} is {value!r}, but the vision tower has {layers} layers: choose {low} to {high}")
