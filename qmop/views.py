"""What methods read off a vision tower, so that one pass of it serves several of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.registry import method_class
from qmop.configuration_qmop import QMoPConfig
from qmop.encoders import QueryEncoder, visual_features
from qmop.features import VisualFeatures
from qmop.loading import declared


@dataclass(frozen=True, kw_only=True)
class View:
    """What one method reads; equal values under equal names, whichever method reads them.

    Attributes:
        tower: digest of the tower's configuration; towers of another kind have nothing in common.
        shown: how the method changes pictures before the tower sees them; empty where it does not.
        declaration: of the method, with its options.
        layer: hidden state that gives the patches.
        attention_layer: block of attention and keys, where the configuration says so.
        levels: hidden states of methods with several, where the configuration says so.
    """

    tower: str
    shown: str
    declaration: Declaration
    layer: int
    attention_layer: int | None
    levels: tuple[int, ...] | None

    @property
    def names(self) -> dict[str, str]:
        """Fields of `VisualFeatures` that the method reads, each with a name that says all that it depends on."""
        told, layer = self.declaration, self.layer
        block = told.attention_layer if self.attention_layer is None else self.attention_layer
        known = {
            "class_token": ("class_token_BC", f"class_token@{layer}"),
            "summary": ("summary_BC", f"summary@{layer}"),
            "cls_attention": ("cls_attention_BN", f"cls_attention@{block},{told.split_heads}"),
            "keys": ("keys_BNHd", f"keys@{block}"),
            "levels": ("levels_BNF", f"levels@{self.levels}"),
            "text_space": ("text_space_BNE", f"text_space@{told.text_layer},{told.text_norm}"),
        }
        read = dict(known[name] for name in sorted(told.reads) if name in known)
        return {"patches_BNC": f"patches@{layer}", **read}

    def without_text(self) -> View:
        """The same of a model without a text tower."""
        return replace(self, declaration=replace(self.declaration, reads=self.declaration.reads - {"text_space"}))


def view_of(config: QMoPConfig) -> View:
    """What a configuration's method reads.

    Raises:
        ValueError: if method, options or budget do not suit the configuration.
    """
    method = method_class(config.compressor)
    changed = [config.compressor, config.compressor_tokens, config.compressor_options]
    levels = config.feature_levels
    return View(
        tower=hashlib.sha256(json.dumps(config.vision_config.to_dict(), sort_keys=True).encode()).hexdigest(),
        shown="" if method.picture is Compressor.picture else json.dumps(changed, sort_keys=True),
        declaration=declared(config),
        layer=config.vision_feature_layer,
        attention_layer=config.importance_layer,
        levels=None if levels is None else tuple(levels),
    )


def together(own: View, others: Sequence[View]) -> tuple[View, ...]:
    """Those views that one pass of a tower can serve beside one's own, which comes first."""
    fitting = (view for view in others if (view.tower, view.shown) == (own.tower, own.shown))
    return tuple(dict.fromkeys([own, *fitting]))


class _Seen:
    """A tower that looks at its pictures once, however often it is asked."""

    def __init__(self, tower: Any) -> None:
        self._tower, self._output = tower, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def __call__(self, pixels_BCHW: Tensor, **options: Any) -> Any:
        if self._output is None:
            self._output = self._tower(pixels_BCHW, **options)
        return self._output


def look(
    tower: Any, pixels_BCHW: Tensor, views: Sequence[View], query_encoder: QueryEncoder | None
) -> dict[str, Tensor]:
    """One pass of a tower, and what all views read of it, by name."""
    seen = _Seen(tower)
    found: dict[str, Tensor] = {}
    for view in views:
        features = visual_features(
            seen,
            pixels_BCHW,
            view.declaration,
            layer=view.layer,
            attention_layer=view.attention_layer,
            levels=None if view.levels is None else list(view.levels),
            query_encoder=query_encoder,
        )
        found |= {name: features[field] for field, name in view.names.items() if name not in found}
    return found


def as_features(view: View, rows: dict[str, Tensor], grid: tuple[int, int]) -> VisualFeatures:
    """What was found under a view's names, as its method reads it."""
    return VisualFeatures(grid=grid, **{field: rows[name] for field, name in view.names.items()})
