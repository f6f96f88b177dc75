"""The projector: a compressor followed by the shared two-layer connector into the language model's width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from qmop.compressors.base import Compressor, Declaration
from qmop.compressors.registry import build_compressor, default_budget, method_class, option_names
from qmop.compressors.values import whole
from qmop.features import CompressedTokens, Grid, Query, VisualFeatures


class Connector(nn.Module):
    """Linear C to D, activation, Linear D to D: LLaVA-1.5's projector, with its parameter names."""

    def __init__(self, width: int, language_width: int, activation: str = "gelu", *, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, language_width, bias=bias)
        self.act = ACT2FN[activation]
        self.linear_2 = nn.Linear(language_width, language_width, bias=bias)

    def forward(self, tokens_BMC: Any) -> Any:
        """`(B, M, C)` to `(B, M, D)`."""
        return self.linear_2(self.act(self.linear_1(tokens_BMC)))


class Projector(nn.Module):
    """Features of an image to M tokens of language width D.

    Args:
        compressor: the method.
        connector: into width D; unused by methods with a readout of their own.
    """

    def __init__(self, compressor: Compressor, connector: nn.Module) -> None:
        super().__init__()
        self.compressor, self.connector = compressor, connector

    @property
    def declaration(self) -> Declaration:
        """What the method reads and how it acts."""
        return self.compressor.declaration

    @property
    def stage(self) -> int:
        """The training stage that the method is in; 2 for methods without stages."""
        return getattr(self.compressor, "stage", 2)

    def token_count(self, grid: Grid | None = None, stage: int | None = None) -> int:
        """Placeholders per image on a grid (the built one when absent) in a stage (the present one when absent)."""
        side = self.compressor.grid
        return self.compressor.token_count(
            self.compressor.tokens, grid=grid or (side, side), stage=self.stage if stage is None else stage
        )

    def forward(
        self, features: VisualFeatures, query: Query | None = None, *, tokens: int | None = None
    ) -> CompressedTokens:
        """Compress and connect: tokens `(B, M, D)`, everything else as the compressor returned it."""
        readout = self.declaration.readout
        if readout == "connector_first":
            features = features.with_patches(self.connector(features.patches_BNC))
        compressed = self.compressor(features, query, tokens=tokens)
        if readout == "connector":
            compressed.tokens_BMC = self.connector(compressed.tokens_BMC)
        return compressed


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """What a projector is made of, known without building it."""

    name: str
    grid: int
    width: int
    language_width: int
    tokens: int
    options: dict[str, Any]
    activation: str = "gelu"
    bias: bool = True

    @property
    def declaration(self) -> Declaration:
        """The method's declaration."""
        return method_class(self.name).declaration

    def token_count(self) -> int:
        """Placeholders per image, asked of a projector built without memory."""
        with torch.device("meta"):
            return self.build().token_count()

    def build(self) -> Projector:
        """The projector.

        Raises:
            ValueError: for an unknown option, a size that is no count, or a budget that does not suit the grid.
        """
        for field in ("grid", "width", "tokens", "name"):
            if field in self.options:
                raise ValueError(
                    f"options names {field}, which is no option: the configuration has a place of its own for it"
                )
        whole("language_width", self.language_width, "the language model reads that many channels")
        readout, options = self.declaration.readout, dict(self.options)
        if "language_width" in option_names(self.name):
            options.setdefault("language_width", self.language_width)
        width = self.language_width if readout == "connector_first" else self.width
        compressor = build_compressor(self.name, grid=self.grid, width=width, tokens=self.tokens, **options)
        if readout == "own":
            return Projector(compressor, nn.Identity())
        return Projector(compressor, Connector(self.width, self.language_width, self.activation, bias=self.bias))


def build_projector(
    name: str,
    *,
    grid: int = 24,
    width: int = 1024,
    tokens: int | None = None,
    language_width: int = 4096,
    **options: Any,
) -> Projector:
    """A method with its connector, by default at the size of LLaVA-1.5-7B.

    Args:
        name: a name of `list_compressors()`.
        grid: side of the patch grid.
        width: C, the vision width.
        tokens: M, the budget; the method's default when absent.
        language_width: D.
        options: the method's own fields.

    Raises:
        ValueError: for an unknown name or option, or a budget that does not suit the grid.
    """
    budget = default_budget(name, grid) if tokens is None else tokens
    spec = ProjectorSpec(
        name=name, grid=grid, width=width, language_width=language_width, tokens=budget, options=options
    )
    return spec.build()


def projector_spec(config: Any) -> ProjectorSpec:
    """Read the projector's part of a `QMoPConfig`.

    Raises:
        ValueError: if the method is unknown, or its text width is not that of the text tower.
    """
    vision = config.vision_config
    grid = vision.image_size // vision.patch_size  # pixels that no patch covers are not seen, as in the tower itself
    name, options = config.compressor, dict(config.compressor_options)
    if config.query_config is not None and "text_width" in option_names(name):
        before = options.get("text_feature") == "eos"  # the end token as it is before the projection
        width = config.query_config.hidden_size if before else text_width(config.query_config)
        if options.setdefault("text_width", width) != width:
            raise ValueError(
                f"text_width is {options['text_width']}, but the text tower gives {width}: leave the option out"
            )
    if config.feature_levels is not None and "levels" in option_names(name):
        options.setdefault("levels", len(config.feature_levels))
    tokens = config.compressor_tokens
    return ProjectorSpec(
        name=name,
        grid=grid,
        width=vision.hidden_size,
        language_width=config.text_config.hidden_size,
        tokens=default_budget(name, grid) if tokens is None else tokens,
        options=options,
        activation=config.projector_hidden_act,
        bias=config.multimodal_projector_bias,
    )


def text_width(query_config: Any) -> int:
    """E, the width of the text space of a CLIP or SigLIP text tower."""
    return getattr(query_config, "projection_dim", None) or query_config.projection_size
