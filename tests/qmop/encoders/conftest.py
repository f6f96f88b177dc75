"""Small towers with sharp attention, and pictures for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from qmop.compressors.base import Declaration, Reads
from qmop.tiny.configs import vision_config

Declares = Callable[..., Declaration]


def sharpened(tower: torch.nn.Module) -> torch.nn.Module:
    """Random towers attend evenly: give their queries and keys more spread."""
    for name, parameter in tower.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.2)
        if name.endswith("in_proj_weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return tower.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def clip() -> CLIPVisionModel:
    """Six layers of width 128, 12 x 12 patches and a class token."""
    torch.manual_seed(0)
    return sharpened(CLIPVisionModel(vision_config()))


@pytest.fixture(scope="session")
def siglip_config() -> SiglipVisionConfig:
    """Four layers of width 64, 6 x 6 patches."""
    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
    )


@pytest.fixture(scope="session")
def siglip(siglip_config: SiglipVisionConfig) -> SiglipVisionModel:
    """A tower of that shape."""
    torch.manual_seed(1)
    return sharpened(SiglipVisionModel(siglip_config))


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """Two pictures of 96 x 96."""
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def declares() -> Declares:
    """`declares("keys", ...)`: a method that reads these."""

    def build(*reads: Reads, **fields: object) -> Declaration:
        return Declaration(name="probe", source="test", reads=frozenset(reads), **fields)

    return build
