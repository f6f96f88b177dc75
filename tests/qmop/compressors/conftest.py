"""Random features of small pictures: six by six patches of width 16, text space of width 8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qmop.features import Query, VisualFeatures

GRID, WIDTH, TEXT_WIDTH = 6, 16, 8

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]


@pytest.fixture
def make_features() -> MakeFeatures:
    """`make_features(batch, seed=0)`: every field that a method may declare."""

    def build(batch: int, *, seed: int = 0, grid: int = GRID, width: int = WIDTH) -> VisualFeatures:
        generator = torch.Generator().manual_seed(seed)
        patches = grid * grid
        return VisualFeatures(
            patches_BNC=torch.randn(batch, patches, width, generator=generator),
            grid=(grid, grid),
            summary_BC=torch.randn(batch, width, generator=generator),
            cls_attention_BN=torch.rand(batch, patches, generator=generator) / patches,
            text_space_BNE=torch.randn(batch, patches, TEXT_WIDTH, generator=generator),
        )

    return build


@pytest.fixture
def make_query() -> MakeQuery:
    """`make_query(batch, seed=1)`: one question per image."""

    def build(batch: int, *, seed: int = 1) -> Query:
        generator = torch.Generator().manual_seed(seed)
        return Query(text_BE=torch.randn(batch, TEXT_WIDTH, generator=generator))

    return build
