"""Random features of small pictures: six by six patches of width 16, text space of width 8."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from qmop.features import CompressedTokens, Query, VisualFeatures
from qmop.tiny.assemble import tiny_model, tiny_processor

GRID, WIDTH, TEXT_WIDTH, HEADS = 6, 16, 8, 2
LEVELS, LANGUAGE_WIDTH = 4, 12

MakeFeatures = Callable[..., VisualFeatures]
MakeQuery = Callable[..., Query]
Seen = tuple[CompressedTokens, torch.Tensor]
ThroughModel = Callable[..., Seen]


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
            class_token_BC=torch.randn(batch, width, generator=generator),
            keys_BNHd=torch.randn(batch, patches, HEADS, width // HEADS, generator=generator),
            levels_BNF=torch.randn(batch, patches, LEVELS * width, generator=generator),
        )

    return build


@pytest.fixture
def make_query() -> MakeQuery:
    """`make_query(batch, seed=1)`: one question per image."""

    def build(batch: int, *, seed: int = 1) -> Query:
        generator = torch.Generator().manual_seed(seed)
        return Query(
            text_BE=torch.randn(batch, TEXT_WIDTH, generator=generator),
            language_BD=torch.randn(batch, LANGUAGE_WIDTH, generator=generator),
        )

    return build


@pytest.fixture
def through_model(pictures: Callable[[int], list[Image.Image]]) -> ThroughModel:
    """`through_model(name, 16, **options)`: two pictures through a tiny model; what was kept, and the logits."""

    @torch.no_grad()
    def run(name: str, tokens: int, **options: object) -> Seen:
        torch.manual_seed(0)
        model = tiny_model(name, tokens, **options)
        processor = tiny_processor(model.model.multi_modal_projector.token_count())
        texts = [f"<user> <image> {question} <assistant>" for question in ("is it red ?", "how many circles ?")]
        batch = processor(images=pictures(2), text=texts, query=texts, padding=True, return_tensors="pt")
        asked = {name: batch[name] for name in ("pixel_values", "query_input_ids", "query_attention_mask")}
        return model.get_image_features(**asked).compressed, model(**batch).logits

    return run
